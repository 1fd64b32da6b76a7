"""The door of DeepSpeed: the base shared among the ranks (ZeRO-3), and each slot's optimizer (ZeRO-1, 2).

DeepSpeed knows one optimizer, one clipping norm, one step count and a fixed set of parameters; a pack has K
of each, and they come and go. So every slot has a DeepSpeed engine of its own over one flat vector, its
row of the pack, with the slot's own clipping; and the base, which never trains, has one for each private
module tree that reads it (docs/decisions/0010-a-deepspeed-engine-per-slot.md). A gradient is handed over
once per step, after all micro-batches, as the gradient of `sum(values * gradient)`.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from replora.config import OptimConfig, RunConfig
from replora.errors import MachineError
from replora.models import load as models
from replora.models.base import Backbone
from replora.train import ranks
from replora.train.recompute import recomputed

__all__ = ["ShardedSlot", "base_json", "load_base", "slot_json"]


def slot_json(config: RunConfig, width: int) -> dict[str, Any]:
    """DeepSpeed's configuration of one slot; beside a shared base it is that of stage 2.

    Micro-batches are summed before DeepSpeed sees them, so for it a step is one micro-batch.

    Args:
        config: The slot's run.
        width: Numbers that it trains.
    """
    engine, train = config.engine, config.train
    zero: dict[str, Any] = {"stage": min(engine.zero, 2), "reduce_bucket_size": width}
    if engine.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        "train_batch_size": train.batch,
        "train_micro_batch_size_per_gpu": train.batch // engine.ranks,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.optim.clip_norm or 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # its own AdamW would be compiled first
        "steps_per_print": 2**31,
    }


def base_json(config: RunConfig, width: int) -> dict[str, Any]:
    """DeepSpeed's configuration of the shared base.

    Args:
        config: A run of the pack.
        width: Of the backbone's features: what is no larger (norms, biases) stays whole on every rank.
    """
    engine, train = config.engine, config.train
    zero: dict[str, Any] = {
        "stage": 3,
        "stage3_param_persistence_threshold": width,
        "stage3_max_reuse_distance": 0,  # by default up to 1e9 weights stay gathered that come again soon
    }
    if engine.offload == "base":
        zero["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        "train_batch_size": train.batch,
        "train_micro_batch_size_per_gpu": train.batch // engine.ranks,
        "gradient_accumulation_steps": 1,
        "bf16": {"enabled": train.precision == "bf16"},
        "zero_optimization": zero,
        "steps_per_print": 2**31,
    }


class ShardedSlot:
    """AdamW of one slot with its state (and from stage 2 its gradient) shared among the ranks.

    Args:
        config: The slot's run.
        value: All that it trains, `[P]`.
        moments: First and second moments, `[P]` each.
        step: Updates done.
    """

    def __init__(self, config: RunConfig, value: Tensor, moments: tuple[Tensor, Tensor], step: int) -> None:
        self._flat = _Flat(value)
        self._step = step
        optim = config.optim
        client = torch.optim.AdamW(
            self._flat.parameters(), optim.lr, (optim.beta1, optim.beta2), optim.eps, optim.weight_decay
        )
        wanted = slot_json(config, value.numel())
        self._engine = _initialized(self._flat, client, wanted)
        _check(self._engine, wanted)
        self._client = client
        [self._part] = client.param_groups[0]["params"]
        first, second = (self._own(moment) for moment in moments)
        client.state[self._part] = {"step": torch.tensor(float(step)), "exp_avg": first, "exp_avg_sq": second}

    def update(self, gradient: Tensor, rate: float, optim: OptimConfig) -> Tensor:
        """One update; this rank's share of the gradient `[P]` in, the new values `[P]` out.

        Args:
            gradient: Summed over this rank's micro-batches.
            rate: Learning rate of this update.
            optim: In force at this update.
        """
        group = self._client.param_groups[0]
        group["lr"], group["weight_decay"] = rate, optim.weight_decay
        self._client.state[self._part]["step"].fill_(float(self._step))
        # DeepSpeed takes the mean over the ranks; the gradient of a batch is the sum of the shares.
        self._engine.backward(self._engine(gradient * ranks.count()))
        self._engine.step()
        self._step += 1
        return self._flat.values.detach()

    def moments(self) -> tuple[Tensor, Tensor]:
        """First and second moments `[P]`, gathered from all ranks."""
        state, width = self._client.state[self._part], self._flat.values.numel()
        first, second = (ranks.gathered(state[name], 0)[:width] for name in ("exp_avg", "exp_avg_sq"))
        return first, second

    def close(self) -> None:
        """Takes DeepSpeed's hooks off and frees what it held, at once: an engine is a cycle of references."""
        self._engine.destroy()
        vars(self).clear()
        gc.collect()

    def _own(self, whole: Tensor) -> Tensor:
        """This rank's part of a vector `[P]`, padded as DeepSpeed pads."""
        size = self._part.numel()
        padded = torch.zeros(size * ranks.count(), dtype=self._part.dtype)
        padded[: whole.numel()] = whole.to(padded)
        return padded[ranks.index() * size :][:size].to(self._part.device, copy=True)


class _Flat(nn.Module):
    """All that a slot trains, as one parameter."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(values.clone())

    def forward(self, gradient: Tensor) -> Tensor:
        """A number whose gradient is `gradient`."""
        return (self.values * gradient).sum()


def load_base(config: RunConfig, device: torch.device | str) -> Backbone:
    """The run's backbone; from stage 3 on, each rank reads and keeps its share of the weights only.

    Raises:
        ReploraError: As `load_backbone`.
        MachineError: If DeepSpeed is needed and missing.
    """
    share = _sharer(config) if config.engine.zero == 3 else None
    backbone = models.load_backbone(
        config.backbone, precision=config.train.precision, device=device, share=share
    )
    if config.engine.recompute:
        backbone = recomputed(backbone)
    return backbone if share is None else _shared(backbone, config, share)


def _sharer(config: RunConfig) -> Callable[[nn.Parameter], None]:
    """What makes a parameter of the base, just read, this rank's share of it."""
    deepspeed = _deepspeed()
    init = deepspeed.zero.Init(
        module=nn.Module(), config_dict_or_path=base_json(config, 0), remote_device=_place(config)
    )

    def share(parameter: nn.Parameter) -> None:
        # Every rank has read the same file: no broadcast, as `Init` would do for modules.
        init._convert_to_deepspeed_param(parameter)
        parameter.partition()  # type: ignore[attr-defined]

    return share


def _shared(backbone: Backbone, config: RunConfig, share: Callable[[nn.Parameter], None]) -> Backbone:
    """The backbone with all its weights shared among the ranks, and gathered layer by layer when read."""
    for parameter in backbone.model.parameters():
        if not hasattr(parameter, "ds_id"):
            share(parameter)
    return replace(backbone, features=_SharedFeatures(backbone, config), whole=_whole)


def _whole(parameter: nn.Parameter) -> Tensor:
    """A shared weight as a whole, on its device; what DeepSpeed's hooks do with it meanwhile is theirs."""
    shared: Any = parameter
    share = shared.ds_tensor.to(parameter.device)
    return ranks.gathered(share, 0)[: shared.ds_numel].view(shared.ds_shape)


class _SharedFeatures:
    """Features of a module tree whose weights are shared: DeepSpeed's hooks gather what a module reads."""

    def __init__(self, backbone: Backbone, config: RunConfig) -> None:
        self._backbone, self._config = backbone, config
        self._latest: _Root | None = None

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        root = model.__dict__.get("_replora_root")
        if root is None:
            root = model.__dict__["_replora_root"] = self._hooked(model)
        if self._latest is not None and self._latest is not root:
            # Its hooks may have begun to gather what they expected next; others must not find that under way.
            self._latest.engine.optimizer.empty_partition_cache()
        self._latest = root
        root.engine.optimizer.release_backward_leftovers()  # of modules whose input needed no gradient
        features: Tensor = root(batch)
        return features

    def _hooked(self, model: nn.Module) -> _Root:
        deepspeed = _deepspeed()
        root = _Root(self._backbone, model)
        wanted = base_json(self._config, self._backbone.width)
        root.engine = _initialized(root, None, wanted)
        _check(root.engine, wanted)
        for parameter in _read_from_outside(model):
            deepspeed.zero.register_external_parameter(root, parameter)
        return root


class _Root(nn.Module):
    """A backbone's features as the module whose call begins and ends a pass."""

    engine: Any

    def __init__(self, backbone: Backbone, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._features = backbone.features
        self.eval()

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        return self._features(self.model, batch)


def _read_from_outside(model: nn.Module) -> list[nn.Parameter]:
    """Weights that are read outside of a call of their module: they stay gathered for a whole pass."""
    found = [p for module in model.modules() if any(module.children()) for p in module.parameters(False)]
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    return [*found, *(head.parameters() if isinstance(head, nn.Module) else ())]


def _initialized(module: nn.Module, client: torch.optim.Optimizer | None, wanted: dict[str, Any]) -> Any:
    return _deepspeed().initialize(model=module, optimizer=client, config=wanted)[0]


def _check(engine: Any, wanted: Mapping[str, Any]) -> None:
    """DeepSpeed completes and corrects what it is given; what it took must hold all that the run says.

    Raises:
        MachineError: Naming what differs.
    """
    zero = engine._config.zero_config.model_dump(by_alias=True, mode="json")
    bf16 = {"enabled": engine.bfloat16_enabled()}
    taken = {**vars(engine._config), "zero_optimization": zero, "bf16": bf16}
    differing = [f"{name}: {asked} -> {found}" for name, asked, found in _compared(wanted, taken)]
    if differing:
        raise MachineError(
            f"DeepSpeed took another configuration than the run's: {'; '.join(differing)}.\n"
            "  Use a DeepSpeed release that docs/engine.md names."
        )


def _compared(wanted: Mapping[str, Any], taken: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Dotted name, wanted value and taken value of all that differs."""
    for name, asked in wanted.items():
        found = taken.get(name)
        if isinstance(asked, Mapping):
            yield from ((f"{name}.{inner}", *values) for inner, *values in _compared(asked, found or {}))
        elif asked != found:
            yield name, asked, found


def _place(config: RunConfig) -> str | None:
    return "cpu" if config.engine.offload == "base" else None


def _deepspeed() -> Any:
    """DeepSpeed on this process's gang, quiet, and without compiling anything on a CPU."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it misses CUDA
    # DeepSpeed 0.19 calls torch's collectives by names that torch 2.14 calls old.
    warnings.filterwarnings("ignore", "`torch.distributed.*` is deprecated", FutureWarning)
    try:
        import deepspeed
    except ImportError as error:
        cure = "Install replora[deepspeed], or set it to 0."
        raise MachineError(f"engine.zero needs the package deepspeed. {cure}") from error
    if not deepspeed.comm.is_initialized():
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        if not torch.cuda.is_available():
            # Known: on a CPU it compiles its shared-memory collectives first, for over a minute.
            sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]
        if not torch.distributed.is_initialized():
            ranks.join_alone()
        deepspeed.init_distributed(verbose=False)
    return deepspeed
