"""Every method as data; `replora.config` offers these names beside the rest of a run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from replora.frozen import Fraction, Frozen, Positive


class LowRankMethod(Frozen):
    """Fields that every low-rank method has; the update of a target is `alpha / rank * B @ A`."""

    rank: Positive = 8
    alpha: Annotated[float, Field(gt=0.0)] = 8.0
    dropout: Fraction = 0.0
    targets: Annotated[tuple[str, ...], Field(min_length=1)] = ("query", "value")


class LoraMethod(LowRankMethod):
    """LoRA: A and B are learned directly, B starts at zero (Hu et al. 2022)."""

    name: Literal["lora"] = "lora"


class ComposedMethod(LowRankMethod):
    """A low-rank method whose update may enter the weight in more than one way.

    Attributes:
        composition: `additive` (W0 + s B A), `weight-decomposed` (DoRA's learned magnitude on each
            output) or `noised` (DoRAN's: tau beside the norm).
        tau: Where tau starts; read only where the composition is `noised`.
    """

    composition: Literal["additive", "weight-decomposed", "noised"] = "additive"
    tau: Annotated[float, Field(gt=0.0, le=100.0)] = 0.1


class DoraMethod(ComposedMethod):
    """DoRA: LoRA's A and B, with the magnitude of each output learned apart (Liu et al. 2024)."""

    name: Literal["dora"] = "dora"
    composition: Literal["weight-decomposed", "noised"] = "weight-decomposed"


class GeneratedMethod(ComposedMethod):
    """A and B are outputs of small generators with one hidden layer.

    Attributes:
        hidden: Width h of the generator's hidden layer; the update's rank is at most min(rank, h).
        shared: One generator for all targets of a block, or (ablation) one for each target.
        activation: Of the hidden layer; `identity` is the linear reparameterization.
        seed: `diagonal` as in the paper, or `dense` (r x r).
        scope: A generator per `block`, or one for the whole `model` (seeds stay per block).
        zero_side: Whose heads start at zero, so that the update is exactly zero at the start.
        plain_targets: Further targets that get plain, additive LoRA of the same rank.
    """

    hidden: Positive = 16
    shared: bool = True
    activation: Literal["gelu", "relu", "tanh", "identity"] = "gelu"
    seed: Literal["diagonal", "dense"] = "diagonal"
    scope: Literal["block", "model"] = "block"
    zero_side: Literal["A", "B"] = "B"
    plain_targets: tuple[str, ...] = ()


class ReploraMethod(GeneratedMethod):
    """RepLoRA: A and B are outputs of small generators shared by the targets of a block.

    Known from the paper: two shared MLPs and diagonal seeds. Everything else here is a *choice*
    of this project (docs/methods.md): one hidden layer, the activation, the bias, the start.
    """

    name: Literal["replora"] = "replora"


class DoranMethod(GeneratedMethod):
    """DoRAN: A and B from auxiliary networks with a shared first layer, and noise in DoRA's norm.

    Reported (arXiv 2510.04331): one hidden layer, its first layer shared by query, value and their
    heads, tau > 0 learned. *Choices*: everything else, the dense seed among it.
    """

    name: Literal["doran"] = "doran"
    composition: Literal["additive", "weight-decomposed", "noised"] = "noised"
    seed: Literal["diagonal", "dense"] = "dense"


class HoraMethod(GeneratedMethod):
    """HoRA: networks that all attention heads of a block share make one A a target and one B a head.

    Reported (arXiv 2510.04295): a joint hypernetwork makes the A of query and value from one learned
    seed, and the B of every head. *Choices*: everything else (docs/methods.md), the dense seeds among it.
    """

    name: Literal["hora"] = "hora"
    seed: Literal["diagonal", "dense"] = "dense"


class AdapterMethod(Frozen):
    """Bottleneck adapter: a small MLP with a skip around it, after its targets or beside them.

    Attributes:
        bottleneck: Width m of the hidden layer.
        form: `series` reads the target's output (Houlsby et al. 2019), `parallel` its input (He et al.
            2022); both add to its output.
        activation: Of the hidden layer.
        scale: Factor of what is added.
        bias: Whether both layers have biases.
        dropout: Of what the adapter reads.
        targets: Linears that get an adapter of their own.
    """

    name: Literal["adapter"] = "adapter"
    bottleneck: Positive = 64
    form: Literal["series", "parallel"] = "series"
    activation: Literal["tanh", "relu", "gelu"] = "tanh"
    scale: Annotated[float, Field(gt=0.0)] = 1.0
    bias: bool = False
    dropout: Fraction = 0.0
    targets: Annotated[tuple[str, ...], Field(min_length=1)] = ("down",)


class PrefixMethod(Frozen):
    """Prefix tuning: learned keys and values that every query of every attention also sees.

    Attributes:
        tokens: Learned tokens of each attention.
        made: `direct` learns keys and values themselves; `mlp` makes them from embeddings of the tokens
            by an MLP with one hidden layer, which all blocks share (Li and Liang 2021).
        hidden: Width of that hidden layer; read only where `made` is `mlp`.
        deviation: Standard deviation of the start: of keys and values, or of the embeddings.
    """

    name: Literal["prefix"] = "prefix"
    tokens: Positive = 10
    made: Literal["direct", "mlp"] = "direct"
    hidden: Positive = 512
    deviation: Annotated[float, Field(gt=0.0)] = 1.0


class FullMethod(Frozen):
    """Full fine-tuning: every weight of the backbone and the head trains."""

    name: Literal["full"] = "full"


class LinearProbeMethod(Frozen):
    """Linear probe: only the task head trains."""

    name: Literal["linear-probe"] = "linear-probe"


LowRankConfig = ReploraMethod | LoraMethod | DoraMethod | DoranMethod | HoraMethod
MethodConfig = Annotated[
    LowRankConfig | AdapterMethod | PrefixMethod | FullMethod | LinearProbeMethod, Field(discriminator="name")
]
