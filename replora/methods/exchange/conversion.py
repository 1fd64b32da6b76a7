"""Between this project's adapter folder and the folder that PEFT writes of the same method.

Both hold the same tensors; only names differ, because a run names targets by their role (`query`) and PEFT by
their module (`q_proj`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from peft import LoraConfig, PeftConfig
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from replora.config import GeneratedMethod, RunConfig
from replora.errors import AdapterError
from replora.methods.adaptation import parts
from replora.methods.bake import head
from replora.methods.exchange.configs import CONFIGS, GeneratedConfig
from replora.methods.exchange.stock import from_lora
from replora.methods.exchange.targets import find_targets
from replora.methods.folder import SavedAdapter, check_tensors
from replora.methods.sites import select_targets
from replora.models.base import Backbone, Target

__all__ = ["from_peft", "to_peft"]

_TENSORS = "base_model.replora_adapters."
_HEAD = "base_model.model.head."


def to_peft(adapter: SavedAdapter, backbone: Backbone) -> tuple[dict[str, Tensor], str]:
    """Tensors and configuration of the folder that PEFT would have saved.

    Raises:
        AdapterError: If the method is none that this project registers with PEFT, or its targets are no whole
            linears and no equal parts of fused ones.
    """
    method = adapter.config.method
    if not isinstance(method, GeneratedMethod) or method.name not in CONFIGS:
        raise AdapterError(
            f"PEFT has no {method.name} of ours, only {', '.join(CONFIGS)}; export it as peft-lora or merged"
        )
    targets = select_targets(backbone.targets, method.targets + method.plain_targets)
    fused = _fused(targets, backbone)
    theirs = find_targets(backbone.model, list(dict.fromkeys(t.module for t in targets)), fused)
    names = _names(theirs, targets)
    shared = set(GeneratedConfig.__dataclass_fields__) & set(type(method).model_fields)
    config = CONFIGS[method.name](
        r=method.rank,
        **{name: getattr(method, name) for name in sorted(shared)},
        target_modules=sorted({target.module for target in targets}),
        plain_modules=sorted(their for their, our in names.items() if our in method.plain_targets),
        fused=fused,
        modules_to_save=["head"] if adapter.head_width else None,
        inference_mode=True,
    )
    renamed = _renamed(backbone, (targets, method), (theirs, config.method([t.name for t in theirs])))
    tensors = {
        f"{_TENSORS}{renamed[n].replace('.', '/')}": t for n, t in adapter.tensors.items() if n in renamed
    }
    trained = head(adapter)
    if trained is not None:
        tensors[f"{_HEAD}weight"], tensors[f"{_HEAD}bias"] = trained
    return tensors, json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def from_peft(folder: Path, run: RunConfig, backbone: Backbone) -> SavedAdapter:
    """An adapter of ours from a folder that PEFT wrote of LoRA, DoRA, RepLoRA, DoRAN or HoRA.

    Args:
        folder: What `save_pretrained` made.
        run: Says the backbone and the task; its method is not looked at.
        backbone: The run's backbone; the adapter counts as trained on it.

    Raises:
        AdapterError: If the folder holds something else, or does not fit the backbone.
    """
    try:
        config = PeftConfig.from_pretrained(str(folder))
        loaded = load_file(folder / "adapter_model.safetensors")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise AdapterError(f"{folder}: no folder of PEFT that can be read: {error}") from error
    if isinstance(config, LoraConfig):
        return from_lora(config, loaded, run, backbone)
    if not isinstance(config, GeneratedConfig):
        known = ", ".join(("lora", *CONFIGS))
        raise AdapterError(f"{folder}: must hold one of {known}, but holds {config.peft_type}")
    targets = _named(backbone, config)
    theirs = find_targets(backbone.model, list(dict.fromkeys(t.module for t in targets)), config.fused)
    their_method, names = config.method([target.name for target in theirs]), _names(theirs, targets)
    method = their_method.model_copy(
        update={
            "targets": tuple(names[name] for name in their_method.targets),
            "plain_targets": tuple(names[name] for name in their_method.plain_targets),
        }
    )
    renamed = _renamed(backbone, (theirs, their_method), (targets, method))
    tensors = {key.removeprefix(_TENSORS).replace("/", "."): tensor for key, tensor in loaded.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items() if name.startswith(_HEAD)}
    for part in parts(backbone.model, theirs, their_method):
        shapes |= part.shapes(their_method)
    check_tensors(shapes, tensors)
    width = shapes.get(f"{_HEAD}weight", (0,))[0]
    own = {renamed.get(name, name.replace(_HEAD, "head.")): tensor for name, tensor in tensors.items()}
    return SavedAdapter(run.model_copy(update={"method": method}), backbone.fingerprint, width, own)


def _fused(targets: Sequence[Target], backbone: Backbone) -> dict[str, list[str | None]]:
    """The equal parts of every linear of which only slices are adapted, by the linear's own name."""
    fused: dict[str, list[str | None]] = {}
    for target in targets:
        outputs = backbone.model.get_parameter(f"{target.module}.weight").shape[0]
        count, rest = divmod(outputs, target.outputs)
        if rest or target.rows[0] % target.outputs:
            raise AdapterError(
                f"{target.module}: its {target.name} is no equal part of it, as PEFT would need"
            )
        if count > 1:
            parts_of = fused.setdefault(target.module.rpartition(".")[2], [None] * count)
            parts_of[target.rows[0] // target.outputs] = target.name
    return fused


def _named(backbone: Backbone, config: GeneratedConfig) -> list[Target]:
    """The backbone's targets that a configuration of PEFT adapts."""
    wanted = config.target_modules if isinstance(config.target_modules, list | set | tuple) else []
    modules = {t.module for t in backbone.targets if any(f".{t.module}".endswith(f".{w}") for w in wanted)}
    places = {(t.module, t.rows) for t in find_targets(backbone.model, sorted(modules), config.fused)}
    found = [target for target in backbone.targets if (target.module, target.rows) in places]
    if not found or len(found) != len(places):
        raise AdapterError(
            f"the adapter's layers ({', '.join(sorted(wanted))}) are not targets of {backbone.name}"
        )
    return found


def _names(theirs: Sequence[Target], ours: Sequence[Target]) -> Mapping[str, str]:
    """Our name of each of their targets."""
    places = {(target.module, target.rows): target.name for target in ours}
    return {target.name: places[target.module, target.rows] for target in theirs}


def _renamed(
    backbone: Backbone,
    before: tuple[Sequence[Target], GeneratedMethod],
    after: tuple[Sequence[Target], GeneratedMethod],
) -> dict[str, str]:
    """Names of all tensors, before to after: both sides build them in one order."""
    old, new = (
        [entry for part in parts(backbone.model, *side) for entry in part.shapes(side[1]).items()]
        for side in (before, after)
    )
    if [shape for _, shape in old] != [shape for _, shape in new]:
        raise AdapterError(
            f"PEFT would group the blocks of {backbone.name} otherwise; export it as peft-lora"
        )
    return {name: other for (name, _), (other, _) in zip(old, new, strict=True)}
