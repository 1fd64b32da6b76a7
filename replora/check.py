"""What can be wrong with a run only in the light of its backbone: names, targets, ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from replora.config import AdapterMethod, GeneratedMethod, LowRankMethod, MethodConfig, RunConfig
from replora.faults import Fault, config_error
from replora.models import BACKBONES
from replora.models.shapes import shapes_of
from replora.parameters import TargetLike
from replora.verbs import nearest

__all__ = ["check_fits", "method_faults", "misfits", "run_faults"]


def check_fits(config: RunConfig, targets: Sequence[TargetLike]) -> None:
    """Refuses a run whose method does not fit its backbone.

    Args:
        config: The run.
        targets: Every target of the backbone.

    Raises:
        ConfigError: Listing all unknown or repeated targets and ranks above a layer's width.
    """
    faults = list(misfits(config, targets))
    if faults:
        raise config_error(faults, {}, f"the run on {config.backbone.name}")


def run_faults(config: RunConfig) -> list[Fault]:
    """Every fault that shows without building anything: unknown backbones, methods that do not fit."""
    name = config.backbone.name
    if name not in BACKBONES and not name.startswith(("timm/", "hf/")):
        text = (
            "backbone.name must be a known name, timm/<a timm ViT> or hf/<a language model>, "
            f"but got {name!r}."
        )
        return [
            Fault(("backbone", "name"), text, f"{nearest(name, BACKBONES)}Names: {', '.join(BACKBONES)}.")
        ]
    shape = shapes_of(name)
    return [] if shape is None else list(misfits(config, shape.targets))


def misfits(config: RunConfig, targets: Sequence[TargetLike]) -> Iterator[Fault]:
    """Every fault that `check_fits` looks for, to be placed in a file by its keys."""
    yield from method_faults(config.method, targets)


def method_faults(method: MethodConfig, targets: Sequence[TargetLike]) -> Iterator[Fault]:
    """What a method cannot do on a backbone with these targets."""
    if isinstance(method, AdapterMethod):
        yield from _unknown("targets", method.targets, targets)
    if not isinstance(method, LowRankMethod):
        return
    yield from _unknown("targets", method.targets, targets)
    names = method.targets
    if isinstance(method, GeneratedMethod):
        yield from _unknown("plain_targets", method.plain_targets, targets)
        both = sorted(set(method.targets) & set(method.plain_targets))
        if both:
            text = f"method.plain_targets must not repeat method.targets, but both have {', '.join(both)}."
            yield Fault(("method", "plain_targets"), text)
        names += method.plain_targets
    widths = _widths([target for target in targets if target.name in names])
    if widths and method.rank > min(widths.values()):
        name = min(widths, key=widths.__getitem__)
        text = f"method.rank must be at most {widths[name]}, the width of {name}, but got {method.rank}."
        yield Fault(
            ("method", "rank"), text, "A larger rank has more parameters than the layer and the same maps."
        )


def _widths(targets: Sequence[TargetLike]) -> dict[str, int]:
    """The smallest width of each target over the blocks."""
    widths: dict[str, int] = {}
    for target in targets:
        width = min(target.inputs, target.outputs)
        widths[target.name] = min(width, widths.get(target.name, width))
    return widths


def _unknown(field: str, names: Sequence[str], targets: Sequence[TargetLike]) -> Iterator[Fault]:
    known = list(dict.fromkeys(target.name for target in targets))
    for name in dict.fromkeys(names):
        if name not in known:
            hint = f"{nearest(name, known)}Targets: {', '.join(known)}."
            yield Fault(
                ("method", field),
                f"method.{field} must name targets of the backbone, but got {name!r}.",
                hint,
            )
        elif names.count(name) > 1:
            yield Fault(("method", field), f"method.{field} names {name!r} more than once.")
