"""Our generated methods as a tuner of PEFT.

An adapter's tensors belong to the tuner, not to its layers, because a generator serves several. So what PEFT
does layer by layer (freezing, deleting, saving) is done for them here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from peft.tuners.tuners_utils import BaseTuner
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import Tensor, nn

from replora.check import method_faults
from replora.errors import AdapterError
from replora.methods.exchange.layer import ReploraLayer
from replora.methods.exchange.targets import check_names, find_targets
from replora.methods.exchange.tensors import AdapterTensors
from replora.methods.folder import check_tensors
from replora.reading.faults import config_error

__all__ = ["ReploraTuner"]


class ReploraTuner(BaseTuner):
    """Holds the adapters' tensors in `replora_adapters` and puts layers at their targets."""

    uses_shared_state = True
    prefix = "replora_"
    tuner_layer_cls = ReploraLayer
    target_module_mapping = cast("dict[str, list[str]]", TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING)
    replora_adapters: nn.ModuleDict

    def _pre_injection_hook(self, model: nn.Module, config: Any, adapter_name: str) -> None:
        self.replora_adapters = nn.ModuleDict()

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict[str, Any]) -> Any:
        peft_config = super()._prepare_adapter_config(peft_config, model_config)
        if not isinstance(peft_config.target_modules, str):
            check_names(self.model, sorted(peft_config.target_modules))
        return peft_config

    def _create_and_replace(  # noqa: PLR0913, PLR0917  # PEFT's signature
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if adapter_name not in self.replora_adapters:
            self.replora_adapters[adapter_name] = self._tensors(peft_config)
        if not isinstance(target, ReploraLayer):
            layer = ReploraLayer(cast("nn.Linear", target), current_key)
            self._replace_module(parent, target_name, layer, target)
            target = layer
        target.add(adapter_name, self._adapter(adapter_name))

    def _tensors(self, config: Any) -> AdapterTensors:
        """A new adapter's tensors at their start, after everything that can be wrong with it was checked."""
        modules = dict(self.model.named_modules())
        inside = tuple(f"{key}." for key, module in modules.items() if isinstance(module, ReploraLayer))
        outside = [key for key in modules if key and not key.startswith(inside)]
        paths = [key for key in outside if self._check_target_module_exists(config, key)]
        targets = find_targets(self.model, paths, config.fused)
        method = config.method([target.name for target in targets])
        faults = list(method_faults(method, targets))
        if faults:
            raise config_error(faults, {}, type(config).__name__)
        return AdapterTensors(self.model, targets, method)

    def _adapter(self, name: str) -> AdapterTensors:
        return cast("AdapterTensors", self.replora_adapters[name])

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Adds an adapter; whether those that are there train does not change."""
        before = {p: p.requires_grad for _, p in self._others(adapter_name)}
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        for parameter, trains in before.items():
            parameter.requires_grad_(trains)

    def _others(self, adapter_name: str) -> Iterator[tuple[str, nn.Parameter]]:
        for name, tensors in self.replora_adapters.items():
            if name != adapter_name:
                yield from tensors.named_parameters()

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Makes adapters act, and train unless `inference_mode`."""
        super().set_adapter(adapter_name, inference_mode)
        active = self.active_adapters
        for name, tensors in self.replora_adapters.items():
            tensors.requires_grad_(name in active and not inference_mode)

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        """Lets adapters train, or not."""
        super().set_requires_grad(adapter_names, requires_grad)
        for name in [adapter_names] if isinstance(adapter_names, str) else adapter_names:
            self._adapter(name).requires_grad_(requires_grad)

    def delete_adapter(self, adapter_name: str) -> None:
        """Removes an adapter from every layer, and its tensors."""
        was_active = adapter_name in self.active_adapters
        super().delete_adapter(adapter_name)
        del self.replora_adapters[adapter_name]
        if was_active:
            self.set_requires_grad(self.active_adapters)

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        shared = ".replora_adapters."
        if shared in key:
            return key.replace(f"{shared}{adapter_name}.", shared, 1)
        return super()._remove_adapter_name_from_key(key, adapter_name)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: Any, adapter_name: str, state_dict: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Names inside the model; refuses tensors that do not fit before any is loaded.

        Raises:
            AdapterError: If a tensor is missing, unknown, of another shape or not finite.
        """
        remapped = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, dict(state_dict))
        held = model.state_dict()
        unknown = sorted(set(remapped) - set(held))
        if unknown:
            raise AdapterError(f"the model has no place for tensors of the adapter: {', '.join(unknown)}")
        mine = f".replora_adapters.{adapter_name}."
        wanted = {name: tuple(tensor.shape) for name, tensor in held.items() if mine in name}
        check_tensors(wanted, {name: tensor for name, tensor in remapped.items() if mine in name})
        return remapped
