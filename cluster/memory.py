"""Bytes that one trial, or a pack of K, takes on each GPU; every coefficient with its origin.

    plain engine: bP + 16T      ZeRO-1, ZeRO-2: bP + 16T + 12T/N      ZeRO-3: bP/N + 16T + 12T/N

P base, T trainable (times K slots), N ranks, b bytes of a number of the base's precision; what trains is
in fp32. Beside DeepSpeed's share each rank keeps a slot's row of values and of gradients, and DeepSpeed's
own flat copy of both, so ZeRO-1 and 2 never hold less than the plain engine (measured on CPU ranks: 28 T on
one, 22 T on two).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Literal

from cluster.activations import activation_bytes, evaluation_bytes, temporary_bytes
from cluster.anatomy import BYTES, Anatomy
from replora.config import AdapterMethod, FullMethod, LowRankMethod, PrefixMethod, RunConfig
from replora.parameters import trainable_parameters
from replora.train.heap import Heap

__all__ = ["GIB", "Memory", "Setting", "believed", "memory_of", "trained_parameters"]

GIB, MIB = 2**30, 2**20

Stage = Literal[0, 1, 2, 3]
Offload = Literal["none", "optimizer", "base"]

#: DeepSpeed's default of stage3_prefetch_bucket_size, in numbers (known). A base that does not train has no
#: buckets to reduce gradients in.
PREFETCH_BUCKET = 50_000_000
#: Share of all tensors kept free on a GPU for fragmentation (choice: nothing was measured on one).
GPU_RESERVE = 0.05
#: What a heap holds on top of a pass's tensors on a CPU, as a share of them, by family: the usual, and by
#: how much of a pass a setting may need more (measured: benchmarks/calibration.py).
HEAPS: dict[Heap, dict[str, tuple[float, float]]] = {
    "jemalloc": {"vit": (0.15, 0.1), "swin": (0.33, 0.12), "llama": (0.12, 0.12), "bart": (0.2, 0.12)},
    "glibc": {"vit": (0.25, 0.2), "swin": (0.65, 0.3), "llama": (0.85, 0.65), "bart": (0.85, 0.65)},
}
#: The spread on a GPU that was calibrated (choice: nothing was measured on one).
GPU_SPREAD = 0.25
#: What a process holds before any model: Python, torch and what comes with it (measured on a CPU).
IMPORTS = {"vit": 712 * MIB, "swin": 712 * MIB, "llama": 780 * MIB, "bart": 780 * MIB}
#: What the libraries take once they work: code, kernels made at run time, buffers (measured on a CPU; of
#: Video Swin on one only: convolutions in time take more).
LIBRARIES = {"vit": 40 * MIB, "swin": 60 * MIB, "llama": 40 * MIB, "bart": 40 * MIB}
#: The CUDA context and its libraries' workspaces (recalled, about half a GiB).
CUDA_CONTEXT = GIB // 2


@dataclass(frozen=True)
class Setting:
    """How a trial, or a pack, is laid out.

    Attributes:
        micro_batch: Examples of one slot in one forward pass on one GPU.
        tokens: Of one example.
        slots: Trials on one base, K.
        stage: ZeRO stage; 0 is the plain engine.
        ranks: GPUs that one trial, or pack, spans.
        recompute: Whether activations are computed again in the backward pass.
        offload: What lies in the host's memory: the optimizer's state, or that and the base.
    """

    micro_batch: int
    tokens: int
    slots: int = 1
    stage: Stage = 0
    ranks: int = 1
    recompute: bool = False
    offload: Offload = "none"

    @property
    def rows(self) -> int:
        """Tokens of one forward pass on one GPU."""
        return self.slots * self.micro_batch * self.tokens


@dataclass(frozen=True)
class Memory:
    """Bytes on each GPU, by what they are for; `host` lies in the host's memory instead.

    `evaluation` is what an evaluation needs beyond the activations and temporaries of training; `heap` what
    the allocator is expected to hold on top of what comes and goes.
    """

    base: int
    adapters: int
    gradients: int
    optimizer: int
    masters: int
    factors: int
    activations: int
    temporaries: int
    evaluation: int
    buffers: int
    runtime: int
    heap: int
    reserve: int
    host: int

    @property
    def passing(self) -> int:
        """What comes and goes with every pass."""
        return self.activations + self.temporaries + self.evaluation

    @property
    def model(self) -> int:
        """What the tensors of the run take: everything but the runtime, the heap's share and the reserve."""
        return self.total - self.runtime - self.heap - self.reserve

    @property
    def total(self) -> int:
        """What the GPU must have."""
        return sum(self.parts().values())

    def parts(self) -> dict[str, int]:
        """Bytes on the GPU by part."""
        return {name: value for name, value in asdict(self).items() if name != "host"}


def trained_parameters(config: RunConfig, anatomy: Anatomy) -> int:
    """What one slot trains, T, without the task head."""
    beside = 0 if isinstance(config.method, FullMethod) else anatomy.beside_parameters
    return beside + trainable_parameters(config.method, anatomy.targets, anatomy.base_parameters)


def memory_of(
    config: RunConfig,
    anatomy: Anatomy,
    setting: Setting,
    device: str = "gpu",
    kept: float | None = None,
    heap: Heap = "jemalloc",
) -> Memory:
    """Bytes of a run in a setting.

    Args:
        config: The run; its own `train.micro_batch` is not read.
        anatomy: Sizes of its backbone.
        setting: Slots, micro-batch, stage, ranks, recomputation, offload.
        device: `gpu` or `cpu`.
        kept: What the allocator was measured to hold on top, as a share of `Memory.passing`
            (cluster.calibration), which counts as `believed` says; None takes what is usual.
        heap: What serves the memory of a CPU.
    """
    b = BYTES[config.train.precision]
    anatomy = replace(anatomy, tokens=setting.tokens)
    trained = setting.slots * trained_parameters(config, anatomy)
    base = b * anatomy.base_parameters
    state = _state(setting, trained, b)
    if setting.stage == 3:
        base = _share(base, setting.ranks)
    host, base = _offload(setting, base, state)
    base += anatomy.tables_bytes
    activations = activation_bytes(config, anatomy, setting.rows, recompute=setting.recompute)
    temporaries = temporary_bytes(config, anatomy, setting.rows, recompute=setting.recompute)
    evaluating = evaluation_bytes(config, anatomy, setting.slots, setting.ranks)
    passing = max(evaluating, activations + temporaries)
    parts = {
        "base": base,
        **state,
        "factors": _factors(config, anatomy, setting.slots),
        "activations": activations,
        "temporaries": temporaries,
        "evaluation": passing - activations - temporaries,
        "buffers": _gathered(setting, anatomy.layer_parameters, b)
        + max(0, _updating(setting, trained, b) - passing),
    }
    bare = Memory(**parts, runtime=_runtime(device, anatomy.family), heap=0, reserve=0, host=host)
    if device == "gpu":
        return _on_gpu(bare, kept)
    usual, spread = HEAPS[heap][anatomy.family]
    share = usual if kept is None else believed(kept, usual, spread)
    return replace(bare, heap=int(share * bare.passing), reserve=int(spread * bare.passing))


def _offload(setting: Setting, base: int, state: dict[str, int]) -> tuple[int, int]:
    """Bytes that go to the host (out of `state`, too), and those of the base that stay."""
    host = 0
    if setting.offload != "none":
        host, state["optimizer"], state["masters"] = state["optimizer"] + state["masters"], 0, 0
    return (host + base, 0) if setting.offload == "base" else (host, base)


def _on_gpu(bare: Memory, kept: float | None) -> Memory:
    if kept is None:
        return replace(bare, reserve=int(GPU_RESERVE * bare.model))
    return replace(bare, heap=int(kept * bare.passing), reserve=int(GPU_SPREAD * bare.passing))


def believed(kept: float, usual: float, spread: float) -> float:
    """The share of a heap to plan with, after a calibration.

    A calibration is of one process of one setting, and settings of one model differ as much as those of
    different ones: a share within the spread of the usual tells nothing new. One beyond it tells of
    another machine or another library, and counts.
    """
    return usual if abs(kept - usual) <= spread else kept


def _runtime(device: str, family: str) -> int:
    return CUDA_CONTEXT if device == "gpu" else IMPORTS[family] + LIBRARIES[family]


def _state(setting: Setting, trained: int, b: int) -> dict[str, int]:
    """Trained values, their gradients, AdamW's moments and ZeRO's own copy of the values it updates."""
    number = max(b, 4)  # fp64 in fp64
    if setting.stage == 0:
        copies, shared, masters = 1, 1, 0
    else:
        copies, shared, masters = 2, setting.ranks, number
    return {
        "adapters": copies * number * trained,
        "gradients": copies * number * trained,
        "optimizer": _share(2 * number * trained, shared),
        "masters": _share(masters * trained, shared),
    }


def _factors(config: RunConfig, anatomy: Anatomy, slots: int) -> int:
    """What the layers read, its gradient buffers, and the originals before a cast to bf16.

    Full fine-tuning in bf16 has a bf16 copy of each slot's weights instead.
    """
    method, b = config.method, BYTES[config.train.precision]
    if isinstance(method, FullMethod) and b < 4:
        return slots * b * anatomy.base_parameters
    numbers = 0 if isinstance(method, FullMethod) else anatomy.beside_parameters
    if isinstance(method, LowRankMethod):
        names = (*method.targets, *getattr(method, "plain_targets", ()))
        chosen = [target for target in anatomy.targets if target.name in names]
        numbers += method.rank * sum(target.inputs + target.outputs for target in chosen)
    elif isinstance(method, AdapterMethod):
        numbers += trainable_parameters(method, anatomy.targets, 0)
    elif isinstance(method, PrefixMethod):
        direct = method.model_copy(update={"made": "direct"})
        numbers += trainable_parameters(direct, anatomy.targets, 0)
    return slots * numbers * (2 * b + (4 if b < 4 else 0))


def _gathered(setting: Setting, layer: int, b: int) -> int:
    """Weights of the base that ZeRO-3 holds whole for a moment."""
    return b * (PREFETCH_BUCKET + 2 * layer) if setting.stage == 3 else 0


def _updating(setting: Setting, trained: int, b: int) -> int:
    """What an update needs when activations have gone: gradients as autograd gives them, for all slots.

    Or, under ZeRO, three vectors of the slot whose turn it is.
    """
    return max(b, 4) * max(trained, 3 * trained // setting.slots if setting.stage else 0)


def _share(count: int, ranks: int) -> int:
    return -(-count // ranks)
