"""A task head on an adapted backbone, with the slot axis: what a pack trains and `eval` reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from replora.config import LinearProbeMethod, MethodConfig, RunConfig
from replora.errors import ConfigError
from replora.methods.adaptation import adapt
from replora.methods.folder import check_tensors
from replora.methods.layout import Layout, Shapes, cover
from replora.models.base import Backbone
from replora.tasks.base import Batch, SplitName, Task
from replora.train import ranks
from replora.train.streams import initial_generator

__all__ = ["SlotModel"]

_HEAD_DEVIATION = 0.01  # choice: small enough that all classes start nearly equal


class SlotModel:
    """K slots on one base: `features -> head`, `logits_k = W_k features_k + b_k`.

    Where the task's head has width 0 there is no head, and the features are the output.

    Args:
        backbone: The frozen base.
        task: Gives the head's width, the loss and the metrics.
        config: A run; fixes the structure of the method and the precision.

    Raises:
        ConfigError: If nothing would train.
    """

    def __init__(self, backbone: Backbone, task: Task, config: RunConfig) -> None:
        self.adaptation = adapt(backbone, config.method)
        self.device = next(backbone.model.parameters()).device
        self.dtype = torch.float64 if config.train.precision == "fp64" else torch.float32
        self._task = task
        self._head = (task.head_width, backbone.width)
        self._has_head = task.head_width > 0
        if not self._has_head and isinstance(config.method, LinearProbeMethod):
            raise ConfigError(
                f"method.name: linear-probe trains only a task head, and {config.task.name} has none.\n"
                "  Choose another method (`replora ls methods`)."
            )

    def shapes(self, method: MethodConfig) -> Shapes:
        """Names and shapes of everything that one slot trains."""
        own = self.adaptation.shapes(method)
        if not self._has_head:
            return own
        return {**own, "head.weight": self._head, "head.bias": self._head[:1]}

    def initial(self, config: RunConfig) -> dict[str, Tensor]:
        """A run's start (fp64), a function of its seed alone; the head is normal with deviation 0.01."""
        generator = initial_generator(config.seed)
        tensors = self.adaptation.initial(config.method, generator)
        if not self._has_head:
            return tensors
        weight = torch.zeros(self._head, dtype=torch.float64)
        weight.normal_(0.0, _HEAD_DEVIATION, generator=generator)
        bias = torch.zeros(self._head[0], dtype=torch.float64)
        return {**tensors, "head.weight": weight, "head.bias": bias}

    def forward(self, batch: Batch, parameters: Mapping[str, Tensor]) -> Tensor:
        """Outputs `[K, B, C]` for a batch `[K, B, ...]`, with the parameters last prepared."""
        features = self.adaptation.features(batch)
        if not self._has_head:
            return features
        features = features.to(self.dtype)
        bias, weight = parameters["head.bias"], parameters["head.weight"]
        return torch.baddbmm(bias.unsqueeze(1), features, weight.transpose(1, 2))

    @torch.no_grad()
    def evaluate(
        self, parameters: Mapping[str, Tensor], methods: Sequence[MethodConfig], split: SplitName
    ) -> list[dict[str, float]]:
        """Metrics of each slot on a whole split, in one packed pass; each rank runs its share."""
        self.adaptation.prepare(parameters, methods)
        self.adaptation.drop_with(None)

        def forward(batch: Batch) -> Tensor:
            share, examples = _share(batch)
            return ranks.gathered(self.forward(share, parameters), 1)[:, :examples]

        return self._task.evaluate(forward, len(methods), split)

    def one(self, tensors: Mapping[str, Tensor], method: MethodConfig) -> dict[str, Tensor]:
        """One slot's saved tensors as parameters of a pack of one.

        Raises:
            AdapterError: If a tensor is missing, unknown, of another shape or not finite.
        """
        check_tensors(self.shapes(method), tensors)
        layout = Layout(self.shapes(cover([method])))
        matrix = torch.zeros(1, layout.width, dtype=self.dtype, device=self.device)
        layout.write(matrix[0], tensors)
        return layout.views(matrix)


def _share(batch: Batch) -> tuple[Batch, int]:
    """This rank's examples of a batch `[K, B, ...]`, as many on each (the last repeats), and B."""
    examples, count = next(iter(batch.values())).shape[1], ranks.count()
    if count == 1:
        return batch, examples
    size = -(-examples // count)
    places = (torch.arange(size) + ranks.index() * size).clamp(max=examples - 1)
    return {name: each.index_select(1, places.to(each.device)) for name, each in batch.items()}, examples
