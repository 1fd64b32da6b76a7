"""What can be wrong with a run only in the light of its backbone: names, targets, ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from replora.config import (
    AdapterMethod,
    CommonsenseTask,
    FullMethod,
    GeneratedMethod,
    HoraMethod,
    LinearProbeMethod,
    LowRankMethod,
    MethodConfig,
    RunConfig,
    TextToTextTask,
)
from replora.models import BACKBONES
from replora.models.shapes import shapes_of
from replora.parameters import TargetLike
from replora.reading.faults import Fault, config_error
from replora.verbs import nearest

__all__ = ["check_fits", "engine_faults", "method_faults", "misfits", "run_faults"]


def check_fits(config: RunConfig, targets: Sequence[TargetLike]) -> None:
    """Refuses a run whose method does not fit its backbone.

    Args:
        config: The run.
        targets: Every target of the backbone.

    Raises:
        ConfigError: Listing all unknown or repeated targets, ranks above a layer's width, and what
            `engine` cannot do for this run.
    """
    faults = [*misfits(config, targets), *engine_faults(config)]
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
    fit = misfits(config, shape.targets) if shape else _headless_probe(config)
    return [*engine_faults(config), *fit]


def engine_faults(config: RunConfig) -> Iterator[Fault]:
    """What the section `engine` asks for and this run cannot have; the planner asks here, too."""
    engine, train = config.engine, config.train
    micro = train.micro_batch or train.batch
    if train.batch % (micro * engine.ranks):
        text = (
            f"engine.ranks times train.micro_batch must divide train.batch, but got {engine.ranks} times "
            f"{micro} and {train.batch}."
        )
        fitting = next((m for m in range(micro, 0, -1) if train.batch % (m * engine.ranks) == 0), None)
        hint = f"Set train.micro_batch to {fitting}." if fitting else "Lower engine.ranks."
        yield Fault(("engine", "ranks"), text, hint)
    if engine.zero and train.precision == "fp64":
        text = "engine.zero must be 0 where train.precision is fp64: DeepSpeed keeps its copies in fp32."
        yield Fault(("engine", "zero"), text)
    if isinstance(config.method, FullMethod):
        if engine.zero == 3:
            text = "engine.zero must be at most 2 for the method full: stage 3 shares a frozen base."
            yield Fault(("engine", "zero"), text)
        if engine.recompute:
            text = "engine.recompute must be false for the method full, whose slots run one after the other."
            yield Fault(("engine", "recompute"), text)
    least = {"none": 0, "optimizer": 1, "base": 3}[engine.offload]
    if engine.zero < least:
        text = (
            f"engine.offload: {engine.offload} needs engine.zero of at least {least}, but got {engine.zero}."
        )
        yield Fault(("engine", "offload"), text)


def misfits(config: RunConfig, targets: Sequence[TargetLike]) -> Iterator[Fault]:
    """Every fault that `check_fits` looks for, to be placed in a file by its keys."""
    yield from _headless_probe(config)
    yield from method_faults(config.method, targets)


def _headless_probe(config: RunConfig) -> Iterator[Fault]:
    if isinstance(config.method, LinearProbeMethod) and isinstance(
        config.task, CommonsenseTask | TextToTextTask
    ):
        text = f"method.name: linear-probe trains the task's head, and the task {config.task.name} has none."
        yield Fault(("method", "name"), text, "Choose another method.")


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
    if isinstance(method, HoraMethod):
        yield from _headless(method.targets, targets)
    widths = _widths([target for target in targets if target.name in names])
    if widths and method.rank > min(widths.values()):
        name = min(widths, key=widths.__getitem__)
        text = f"method.rank must be at most {widths[name]}, the width of {name}, but got {method.rank}."
        yield Fault(
            ("method", "rank"), text, "A larger rank has more parameters than the layer and the same maps."
        )


def _headless(names: Sequence[str], targets: Sequence[TargetLike]) -> Iterator[Fault]:
    """HoRA's targets without attention heads."""
    having = list(dict.fromkeys(target.name for target in targets if target.heads))
    for name in dict.fromkeys(target.name for target in targets if target.name in names and not target.heads):
        text = f"method.targets of hora must have attention heads, but {name} has none."
        hint = f"Name it in method.plain_targets. Targets with heads: {', '.join(having)}."
        yield Fault(("method", "targets"), text, hint)


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
