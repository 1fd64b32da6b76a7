"""Stock LoRA and DoRA of PEFT as adapters of ours: a LoRA of a fused linear is one of each of its targets."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from peft import LoraConfig
from torch import Tensor

from replora.config import DoraMethod, LoraMethod, RunConfig
from replora.errors import AdapterError
from replora.methods.adaptation import Part, parts
from replora.methods.folder import SavedAdapter, check_tensors
from replora.models.base import Backbone, Target

__all__ = ["from_lora"]

_PREFIX, _A, _B, _M = "base_model.model.", ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"
_HEAD: tuple[str, ...] = ("head.weight", "head.bias")


def from_lora(
    config: LoraConfig, loaded: Mapping[str, Tensor], run: RunConfig, backbone: Backbone
) -> SavedAdapter:
    """An adapter of ours from the tensors of a LoRA of PEFT.

    Raises:
        AdapterError: If it has what our LoRA has not, or does not cover whole layers of every block.
    """
    odd = ("rank_pattern", "alpha_pattern", "use_rslora", "fan_in_fan_out", "lora_bias")
    found = [name for name in odd if getattr(config, name, None)]
    if found or config.bias != "none":
        raise AdapterError(f"a LoRA with {', '.join(found) or 'bias'} has no form here")
    tensors = {name.removeprefix(_PREFIX): tensor for name, tensor in loaded.items()}
    made: dict[str, Tensor] = {name: tensors.pop(name) for name in _HEAD if name in tensors}
    check_tensors({name: tuple(tensor.shape) for name, tensor in made.items()}, made)
    targets = _covered(config, tensors, backbone)
    method = (DoraMethod if config.use_dora else LoraMethod)(
        rank=config.r,
        alpha=float(config.lora_alpha),
        dropout=config.lora_dropout,
        targets=tuple(dict.fromkeys(target.name for target in targets)),
    )
    for part in parts(backbone.model, targets, method):
        made |= _of(part, method, tensors)
    width = len(made["head.weight"]) if "head.weight" in made else 0
    changed = run.model_copy(update={"method": method})
    return SavedAdapter(changed, backbone.fingerprint, width, made)


def _covered(config: LoraConfig, tensors: Mapping[str, Tensor], backbone: Backbone) -> list[Target]:
    """The targets that a LoRA adapts: all rows of its layers, the same in every block."""
    modules = {name.removesuffix(_A) for name in tensors if name.endswith(_A)}
    suffixes = (_A, _B, _M) if config.use_dora else (_A, _B)
    odd = sorted({f"{module}{suffix}" for module in modules for suffix in suffixes} ^ set(tensors))
    if odd or not modules:
        raise AdapterError(f"no whole LoRA of {backbone.name}: {odd[0] if odd else 'no tensors'}")
    names = {target.name for target in backbone.targets if target.module in modules}
    targets = [target for target in backbone.targets if target.name in names]
    rows = dict.fromkeys(modules, 0)
    for target in targets:
        rows[target.module] = rows.get(target.module, 0) + target.outputs
    wrong = sorted(m for m, count in rows.items() if m not in modules or count != len(tensors[f"{m}{_B}"]))
    if wrong:
        raise AdapterError(
            f"a LoRA must cover whole targets of {backbone.name} in every block, but {wrong[0]} is not"
        )
    return targets


def _of(part: Part, method: LoraMethod | DoraMethod, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors of a part: its shapes name them, `[group.]<site or target>.<A, B or magnitude>`."""
    values: dict[str, Tensor] = {}
    for site in part.source.sites:
        stacked = [tensors[f"{module}{_A}"].expand(len(site.targets), -1, -1) for module in site.modules]
        values[f"{site.name}.A"] = torch.stack(stacked)
        for target, (low, high) in zip(site.targets, site.rows, strict=True):
            values[f"{target}.B"] = torch.stack([tensors[f"{m}{_B}"][low:high].T for m in site.modules])
            if isinstance(method, DoraMethod):
                kept = [tensors[f"{module}{_M}"][low:high] for module in site.modules]
                values[f"{target}.magnitude"] = torch.stack(kept)
    shapes = part.shapes(method)
    made = {name: values[".".join(name.split(".")[-2:])] for name in shapes}
    check_tensors(shapes, made)
    return made
