"""How many parameters a method trains, from shapes alone and without torch."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from replora.config import (
    AdapterMethod,
    ComposedMethod,
    FullMethod,
    GeneratedMethod,
    HoraMethod,
    LowRankConfig,
    LowRankMethod,
    MethodConfig,
    PrefixMethod,
    RunConfig,
)
from replora.errors import ConfigError
from replora.models.shapes import shapes_of

__all__ = [
    "TargetLike",
    "bottleneck_for_budget",
    "rank_for_budget",
    "run_parameters",
    "tokens_for_budget",
    "trainable_parameters",
]


class TargetLike(Protocol):
    """What is needed of a target, whether of a built backbone or of its shapes alone."""

    @property
    def name(self) -> str:
        """Role in its block."""
        ...

    @property
    def block(self) -> int:
        """Index of its block."""
        ...

    @property
    def inputs(self) -> int:
        """Input features."""
        ...

    @property
    def outputs(self) -> int:
        """Output features."""
        ...

    @property
    def heads(self) -> int:
        """Attention heads that share the outputs; 0 where there are none."""
        ...


def trainable_parameters(method: MethodConfig, targets: Sequence[TargetLike], base_parameters: int) -> int:
    """Parameters that a method trains in training, the task head excluded.

    LoRA has `r (in + out)` per target. RepLoRA has, per side, a seed `r` (dense: `r^2`) and a hidden
    layer `h r + h` for each generator, and a head `h in` (A side) or `h out` (B side) per target. With
    `scope: model` the hidden layer and the heads exist once for all blocks of equal shape. HoRA has a
    B-seed per attention head, and a B-head of one attention head's width. A decomposed weight adds a
    magnitude per output, a noised one a tau per target. An adapter of width m has
    `m (read + out)` per target, where it reads `out` in series and `in` in parallel, and `m + out` for its
    biases. A prefix of P tokens has `P (key + value)` per attention; made by an MLP of width h, embeddings
    `P e` with e the width of the first attention's keys, a layer `e h + h`, and `(h + 1) (key + value)` per
    attention.

    Args:
        method: The method.
        targets: All targets of the backbone; those that the method names are counted.
        base_parameters: Weights of the backbone, which full fine-tuning trains.
    """
    if isinstance(method, FullMethod):
        return base_parameters
    if isinstance(method, AdapterMethod):
        return _adapters(method, targets)
    if isinstance(method, PrefixMethod):
        return _prefixes(method, targets)
    if not isinstance(method, LowRankMethod):
        return 0
    chosen = [target for target in targets if target.name in method.targets]
    composed = _composed(method, chosen)
    if not isinstance(method, GeneratedMethod):
        return composed + _direct(method.rank, chosen)
    plain = [target for target in targets if target.name in method.plain_targets]
    return composed + _generated(method, chosen) + _direct(method.rank, plain)


def run_parameters(run: RunConfig) -> int | None:
    """What a run trains without the task head, before anything is built; None for unknown shapes.

    The method's own, and what trains beside every method of its backbone (VL-BART's biases and visual
    embedding, which are among the base's weights under full fine-tuning).
    """
    shape = shapes_of(run.backbone.name)
    if shape is None:
        return None
    beside = 0 if isinstance(run.method, FullMethod) else shape.beside_parameters
    return trainable_parameters(run.method, shape.targets, shape.base_parameters) + beside


def rank_for_budget(budget: int, method: LowRankConfig, targets: Sequence[TargetLike]) -> int:
    """Largest rank at which a low-rank method fits a parameter budget; everything else stays as given.

    Args:
        budget: Trainable parameters allowed over all targets, the task head excluded.
        method: The method; its own rank is not looked at, its hidden width and composition are.
        targets: All targets of the backbone.

    Returns:
        The rank, at least 1 and at most the smallest width of the method's targets.

    Raises:
        ConfigError: If rank 1 already exceeds the budget, or the backbone has none of the targets.
    """
    widths = [min(t.inputs, t.outputs) for t in targets if t.name in method.targets]
    if not widths:
        raise ConfigError(f"method.targets: none of {', '.join(method.targets)} is in this backbone")

    return _largest("rank", min(widths), budget, method, targets)


def bottleneck_for_budget(budget: int, method: AdapterMethod, targets: Sequence[TargetLike]) -> int:
    """Largest width at which bottleneck adapters fit a parameter budget; everything else stays as given.

    Args:
        budget: Trainable parameters allowed over all targets, the task head excluded.
        method: The method; its own bottleneck is not looked at.
        targets: All targets of the backbone.

    Raises:
        ConfigError: If width 1 already exceeds the budget, or the backbone has none of the targets.
    """
    if not any(target.name in method.targets for target in targets):
        raise ConfigError(f"method.targets: none of {', '.join(method.targets)} is in this backbone")
    return _largest("bottleneck", budget, budget, method, targets)


def tokens_for_budget(budget: int, method: PrefixMethod, targets: Sequence[TargetLike]) -> int:
    """Longest prefix that fits a parameter budget; everything else stays as given.

    Args:
        budget: Trainable parameters allowed over all attentions, the task head excluded.
        method: The method; its own number of tokens is not looked at, its MLP is.
        targets: All targets of the backbone.

    Raises:
        ConfigError: If one token already exceeds the budget.
    """
    return _largest("tokens", budget, budget, method, targets)


def _largest(field: str, limit: int, budget: int, method: MethodConfig, targets: Sequence[TargetLike]) -> int:
    """The largest value of a size of a method, up to a limit, whose parameters fit a budget."""

    def cost(size: int) -> int:
        return trainable_parameters(method.model_copy(update={field: size}), targets, 0)

    if cost(1) > budget:
        raise ConfigError(
            f"a budget of {budget:,} parameters must hold {field} 1 of {method.name}, which has {cost(1):,}; "
            "raise the budget, or name fewer targets or a smaller hidden width"
        )
    return bisect_right(range(1, limit + 1), budget, key=cost)


def _adapters(method: AdapterMethod, targets: Sequence[TargetLike]) -> int:
    total = 0
    for target in targets:
        if target.name in method.targets:
            read = target.outputs if method.form == "series" else target.inputs
            biases = method.bottleneck + target.outputs if method.bias else 0
            total += method.bottleneck * (read + target.outputs) + biases
    return total


def _prefixes(method: PrefixMethod, targets: Sequence[TargetLike]) -> int:
    widths = [target.outputs for target in targets if target.name in ("key", "value")]
    if method.made == "direct":
        return method.tokens * sum(widths)
    embedding = next(target.outputs for target in targets if target.name == "key")
    encoder = method.tokens * embedding + embedding * method.hidden + method.hidden
    return encoder + (method.hidden + 1) * sum(widths)


def _composed(method: LowRankMethod, targets: Sequence[TargetLike]) -> int:
    """A magnitude for each output where the weight is decomposed, and one tau per target where noised."""
    if not isinstance(method, ComposedMethod) or method.composition == "additive":
        return 0
    noise = len(targets) if method.composition == "noised" else 0
    return noise + sum(target.outputs for target in targets)


def _direct(rank: int, targets: Sequence[TargetLike]) -> int:
    return sum(rank * (target.inputs + target.outputs) for target in targets)


def _generated(method: GeneratedMethod, targets: Sequence[TargetLike]) -> int:
    """Blocks of equal shape are a group; with `scope: model` each group has networks of its own."""
    blocks: dict[int, tuple[tuple[str, int, int, int], ...]] = {}
    for each in targets:
        shape = (each.name, each.inputs, each.outputs, each.heads)
        blocks[each.block] = (*blocks.get(each.block, ()), shape)
    return sum(_group(method, shapes, count) for shapes, count in Counter(blocks.values()).items())


def _group(method: GeneratedMethod, shapes: Sequence[tuple[str, int, int, int]], blocks: int) -> int:
    """Parameters of blocks with the same targets, each `(name, inputs, outputs, heads)`."""
    rank, hidden, joint = method.rank, method.hidden, isinstance(method, HoraMethod)
    networks = 1 if method.shared else len(shapes)
    seeds = networks + (sum(heads for *_, heads in shapes) if joint else networks)
    made = sum(inputs + outputs // (heads if joint else 1) for _, inputs, outputs, heads in shapes)
    generators = 2 * networks * (hidden * rank + hidden) + hidden * made
    seed = rank**2 if method.seed == "dense" else rank
    return blocks * seeds * seed + generators * (1 if method.scope == "model" else blocks)
