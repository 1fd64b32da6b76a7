"""What an exported folder says of itself: how the program that it is for opens it."""

from __future__ import annotations

from typing import Literal

from replora.models.base import Backbone
from replora.models.shapes import VIDEO_SWIN, is_language_model

__all__ = ["Family", "family_of", "merged_readme", "peft_readme"]

Family = Literal["timm", "video", "causal", "seq2seq"]


def family_of(backbone: Backbone) -> Family:
    """Whose model a backbone is, as other programs see it."""
    if backbone.name in VIDEO_SWIN:
        return "video"
    if not is_language_model(backbone.name):
        return "timm"
    config: object = backbone.model.config
    return "seq2seq" if getattr(config, "is_encoder_decoder", False) else "causal"


def peft_readme(backbone: Backbone, classes: int) -> str:
    """Of a folder for `peft.PeftModel.from_pretrained`."""
    return _PEFT[family_of(backbone)].format(name=backbone.name, classes=classes)


def merged_readme(backbone: Backbone, classes: int) -> str:
    """Of a folder of whole weights."""
    text = _MERGED[family_of(backbone)].format(name=backbone.name, classes=classes, build=_build(backbone))
    return text + _VISUAL if backbone.beside is not None else text


def _build(backbone: Backbone) -> str:
    """The call of torchvision for a Video Swin."""
    shape = VIDEO_SWIN.get(backbone.name)
    if shape is None:
        return ""
    if backbone.name.removeprefix("video-swin-") in ("t", "s", "b"):
        return f"torchvision.models.video.{backbone.name.replace('video-swin-', 'swin3d_')}(num_classes=C)"
    sizes = f"{[*shape.patch]}, {shape.embed}, {[*shape.depths]}, {[*shape.heads]}, {[*shape.window]}"
    return f"torchvision.models.video.SwinTransformer3d({sizes}, num_classes=C)"


_PEFT_TRANSFORMER = """\
# A PEFT adapter for {{name}}

    from peft import PeftModel
    from transformers import {auto}

    base = {auto}.from_pretrained("<folder of {{name}}>")
    model = PeftModel.from_pretrained(base, "<this folder>").eval()
"""
_MERGED_TRANSFORMER = """\
# {{name}} with the adapter merged in

A whole checkpoint: `{auto}.from_pretrained("<this folder>")`.
"""
_VISUAL = """
Its visual embedding is in `model.safetensors` under `visual.`, which transformers leaves out: `replora`
reads the whole with `backbone.name: hf/<this folder>`.
"""
_PEFT: dict[Family, str] = {
    "timm": """\
# A PEFT adapter for {name}

    from peft import PeftModel
    from replora.config import BackboneConfig
    from replora.models.load import load_backbone

    base = load_backbone(BackboneConfig(name="{name}"), precision="fp32", device="cpu").model
    base.reset_classifier({classes})
    model = PeftModel.from_pretrained(base, "<this folder>").eval()

`base` has the state of a timm VisionTransformer; any way to build one with these weights will do.
""",
    "video": """\
# A PEFT adapter for {name}

    from peft import PeftModel
    from torch import nn

    base = ...  # torchvision's model with the weights that the adapter was trained on
    base.head = nn.Linear(base.num_features, {classes})
    model = PeftModel.from_pretrained(base, "<this folder>").eval()
""",
    "causal": _PEFT_TRANSFORMER.format(auto="AutoModelForCausalLM"),
    "seq2seq": _PEFT_TRANSFORMER.format(auto="AutoModelForSeq2SeqLM"),
}
_MERGED: dict[Family, str] = {
    "timm": """\
# {name} with the adapter merged in

`model.safetensors` is the state of the timm VisionTransformer with {classes} classes: build it, call
`reset_classifier({classes})`, and `load_state_dict(safetensors.torch.load_file("model.safetensors"))`.
""",
    "video": """\
# {name} with the adapter merged in

`model.safetensors` is the state of torchvision's own model with C = {classes} classes:

    model = {build}
    model.load_state_dict(safetensors.torch.load_file("model.safetensors"))
""",
    "causal": _MERGED_TRANSFORMER.format(auto="AutoModelForCausalLM"),
    "seq2seq": _MERGED_TRANSFORMER.format(auto="AutoModelForSeq2SeqLM"),
}
