"""Adapters for other programs: plain LoRA folders that stock PEFT opens, and merged weights.

A low-rank update of a slice of a fused qkv becomes part of one LoRA on the whole linear: A stacks the
targets' A, B has their B as blocks on its diagonal rows, and alpha grows with the rank, so the product is
the same to the last bit of the format. A decomposed update becomes PEFT's DoRA: its magnitudes belong to
single output rows, so those outside the targets are their own norms, and what tau does to a trained adapter
is part of the magnitude.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors.torch import save_file
from torch import Tensor

from replora.config import AdapterMethod, ComposedMethod, LowRankMethod, PrefixMethod, RunConfig
from replora.errors import AdapterError
from replora.methods.bake import BakedTarget, bake, head, merge
from replora.methods.exchange.readmes import family_of, merged_readme, peft_readme
from replora.methods.folder import SavedAdapter, load_adapter, save_adapter
from replora.models.base import Backbone
from replora.models.hub import checkpoint_files
from replora.models.load import load_backbone
from replora.models.shapes import is_language_model

__all__ = ["KINDS", "export", "import_peft"]

Kind = Literal["peft-lora", "peft", "merged", "replora"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Files = Mapping[str, str | bytes | Mapping[str, Tensor]]


def export(run_dir: Path, kind: Kind, out: Path) -> Path:
    """Writes a run's adapter in another form into a new folder.

    Args:
        run_dir: Folder of a finished run or trial.
        kind: `peft-lora` (plain LoRA, for `peft.PeftModel.from_pretrained`), `peft` (the method itself, for
            PEFT with this project's methods, docs/peft.md), `merged` (whole weights) or `replora` (this
            project's own folder, which `replora eval` reads).
        out: Folder to create.

    Returns:
        `out`.

    Raises:
        AdapterError: If `run_dir` holds no adapter, the method has no such form, or `out` exists.
    """
    adapter = load_adapter(run_dir / "adapter")
    if kind not in KINDS:
        raise AdapterError(f"export kind must be one of {', '.join(KINDS)}, but got {kind!r}")
    if out.exists():
        raise AdapterError(f"{out}: exists already; name a new folder")
    if kind == "replora":
        save_adapter(out, adapter)
        return out
    backbone = load_backbone(adapter.config.backbone, precision="fp32", device="cpu")
    files = {"peft-lora": _peft_lora, "peft": _peft, "merged": _merged}[kind](adapter, backbone)
    temporary = out.with_name(f".{out.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name, content in files.items():
        if isinstance(content, str):
            (temporary / name).write_text(content)
        elif isinstance(content, bytes):
            (temporary / name).write_bytes(content)
        else:
            save_file({key: tensor.contiguous() for key, tensor in content.items()}, temporary / name)
    temporary.rename(out)
    return out


def _peft_lora(adapter: SavedAdapter, backbone: Backbone) -> Files:
    method = adapter.config.method
    if not isinstance(method, LowRankMethod):
        kind = "replora" if isinstance(method, AdapterMethod | PrefixMethod) else "merged"
        raise AdapterError(f"the method {method.name} has no LoRA form; export it as {kind}")
    decomposed = isinstance(method, ComposedMethod) and method.composition != "additive"
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    targets = sorted(bake(adapter, backbone), key=lambda target: (target.module, target.rows))
    _check_peft(targets, backbone)
    for module, run in groupby(targets, key=lambda target: target.module):
        members = list(run)
        a, b = _stacked(members, backbone)
        tensors[f"base_model.model.{module}.lora_A.weight"] = a
        tensors[f"base_model.model.{module}.lora_B.weight"] = b
        ranks[module] = a.shape[0]
        if decomposed:
            magnitudes = _magnitudes(members, backbone)
            tensors[f"base_model.model.{module}.lora_magnitude_vector"] = magnitudes
    described = _lora_config(ranks, method, adapter, use_dora=decomposed)
    trained_head = head(adapter)
    if trained_head is not None:
        tensors["base_model.model.head.weight"], tensors["base_model.model.head.bias"] = trained_head
    return {
        "adapter_model.safetensors": tensors,
        "adapter_config.json": described,
        "README.md": peft_readme(backbone, adapter.head_width),
    }


def _peft(adapter: SavedAdapter, backbone: Backbone) -> Files:
    from replora.methods.exchange.conversion import to_peft  # PEFT, slow to import

    _check_peft(bake(adapter, backbone), backbone)
    tensors, described = to_peft(adapter, backbone)
    readme = peft_readme(backbone, adapter.head_width).replace(
        "    from peft import",
        "    import replora.methods.exchange.configs  # registers the method\n    from peft import",
        1,
    )
    return {"adapter_model.safetensors": tensors, "adapter_config.json": described, "README.md": readme}


def import_peft(folder: Path, run: RunConfig, out: Path) -> Path:
    """Makes a run's folder, which `replora eval` and `export` read, of a folder of PEFT.

    Args:
        folder: What `save_pretrained` wrote of LoRA, DoRA, RepLoRA, DoRAN or HoRA.
        run: Backbone and task; the method is the folder's.
        out: Folder to create.

    Returns:
        `out`.

    Raises:
        AdapterError: If `folder` holds something else or does not fit the backbone, or `out` exists.
    """
    from replora.methods.exchange.conversion import from_peft  # PEFT, slow to import

    if out.exists():
        raise AdapterError(f"{out}: exists already; name a new folder")
    backbone = load_backbone(run.backbone, precision="fp32", device="cpu")
    save_adapter(out / "adapter", from_peft(folder, run, backbone))
    return out


def _check_peft(targets: Sequence[BakedTarget], backbone: Backbone) -> None:
    """Refuses what stock PEFT would leave out without a word.

    Raises:
        AdapterError: If the base reads an adapted weight by itself, or more than the adapter was trained.
    """
    if family_of(backbone) == "video":
        unheard = sorted({each.name for each in targets if ".attn." in each.module})
        if unheard:
            raise AdapterError(
                f"{backbone.name}: torchvision's attention reads the weights of {', '.join(unheard)} by "
                "itself and would ignore a LoRA of PEFT on them.\n  Export it as merged."
            )
    if backbone.beside is not None:
        raise AdapterError(
            f"{backbone.name}: its biases and its visual embedding were trained beside the adapter, and a "
            "LoRA of PEFT has no place for them.\n  Export it as merged."
        )


def _stacked(targets: Sequence[BakedTarget], backbone: Backbone) -> tuple[Tensor, Tensor]:
    """One LoRA `A [sum r, I]`, `B [O, sum r]` for all targets in one linear."""
    outputs = backbone.model.get_parameter(f"{targets[0].module}.weight").shape[0]
    a = torch.cat([target.a for target in targets])
    b = torch.zeros(outputs, a.shape[0], dtype=a.dtype)
    column = 0
    for target in targets:
        low, high = target.rows
        b[low:high, column : column + target.b.shape[1]] = target.b
        column += target.b.shape[1]
    return a.float(), b.float()


def _magnitudes(targets: Sequence[BakedTarget], backbone: Backbone) -> Tensor:
    """`gain ||W0 + s B A||_c` of each output row `[O]` of a linear; rows without a gain keep their norm."""
    weight = backbone.model.get_parameter(f"{targets[0].module}.weight").detach().double().clone()
    gain = torch.ones(len(weight), dtype=torch.float64)
    for target in targets:
        low, high = target.rows
        weight[low:high] += target.scale * target.b.double() @ target.a.double()
        if target.gain is not None:
            gain[low:high] = target.gain
    magnitudes: Tensor = gain * weight.norm(dim=1)
    return magnitudes.float()


def _lora_config(
    ranks: Mapping[str, int], method: LowRankMethod, adapter: SavedAdapter, *, use_dora: bool
) -> str:
    """PEFT's own configuration; every module keeps the scale `alpha / rank` of the method."""
    from peft import LoraConfig  # slow to import

    rank = next(iter(ranks.values()))
    alphas = {module: found * method.alpha / method.rank for module, found in ranks.items()}
    config = LoraConfig(
        r=rank,
        lora_alpha=alphas[next(iter(ranks))],  # type: ignore[arg-type]
        lora_dropout=method.dropout,
        use_dora=use_dora,
        target_modules=sorted(ranks),
        rank_pattern={module: found for module, found in ranks.items() if found != rank},
        alpha_pattern={module: alphas[module] for module, found in ranks.items() if found != rank},
        modules_to_save=["head"] if adapter.head_width else None,
        inference_mode=True,
    )
    described = config.to_dict()
    described["target_modules"] = sorted(ranks)
    return json.dumps(described, indent=2, sort_keys=True, default=str) + "\n"


def _merged(adapter: SavedAdapter, backbone: Backbone) -> Files:
    readme = {"README.md": merged_readme(backbone, adapter.head_width)}
    if is_language_model(backbone.name):
        return {**checkpoint_files(merge(adapter, backbone), backbone.processor), **readme}
    tensors = {name: tensor.detach() for name, tensor in merge(adapter, backbone).state_dict().items()}
    trained_head = head(adapter)
    if trained_head is not None:
        tensors["head.weight"], tensors["head.bias"] = (tensor.float() for tensor in trained_head)
    described = {
        "backbone": adapter.config.backbone.model_dump(mode="json"),
        "classes": adapter.head_width,
        "made_from": adapter.config.model_dump(mode="json"),
    }
    return {
        "model.safetensors": tensors,
        "config.json": json.dumps(described, indent=2) + "\n",
        **readme,
    }
