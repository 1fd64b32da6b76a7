"""RepLoRA, DoRAN and HoRA as configurations of PEFT; importing this module registers them (docs/peft.md).

PEFT's own registration takes only the names of its enumeration, but the tables that it fills take any text.
What lies behind them is internal to PEFT, so other releases than those tested are refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, ClassVar

from packaging.version import Version

from replora.config import DoranMethod, GeneratedMethod, HoraMethod, ReploraMethod
from replora.errors import MachineError
from replora.reading.faults import config_error
from replora.reading.validate import validate

TESTED = (Version("0.21"), Version("0.22"))  # from the first up to before the second; as in pyproject.toml


def check_release(installed: str) -> None:
    """Refuses releases of PEFT that this was not tested with.

    Raises:
        MachineError: Naming the release and the tested ones.
    """
    low, high = TESTED
    if not low <= Version(installed) < high:
        raise MachineError(
            f"our methods work inside PEFT {low} up to before {high}, but PEFT {installed} is installed.\n"
            f"  Install peft>={low},<{high}; exporting plain LoRA folders works with any release."
        )


check_release(version("peft"))

from peft import PeftConfig  # noqa: E402  # after the check, which says more than a failing import
from peft.mapping import (  # noqa: E402
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)

from replora.methods.exchange.tuner import ReploraTuner  # noqa: E402

__all__ = ["CONFIGS", "DoranConfig", "GeneratedConfig", "HoraConfig", "RepLoraConfig", "check_release"]


@dataclass
class GeneratedConfig(PeftConfig):
    """Fields of every generated method; those that runs have too mean the same there (docs/methods.md).

    Attributes:
        r: Rank of the update.
        target_modules: Names of adapted linear layers, as for PEFT's LoRA.
        plain_modules: Those of them (or of `fused` parts) that get plain LoRA instead of generated factors.
        fused: Names of the equal row parts of a fused linear, by the linear's own name; null is left alone.
        modules_to_save: Modules that train as a whole, for example a new head.
        exclude_modules, layers_to_transform, layers_pattern: As for PEFT's LoRA.
    """

    r: int = 8
    alpha: float = 8.0
    dropout: float = 0.0
    hidden: int = 16
    shared: bool = True
    activation: str = "gelu"
    seed: str = "diagonal"
    scope: str = "block"
    zero_side: str = "B"
    composition: str = "additive"
    tau: float = 0.1
    target_modules: list[str] | str | None = None
    plain_modules: list[str] = field(default_factory=list)
    fused: dict[str, list[str | None]] = field(default_factory=lambda: {"qkv": ["query", None, "value"]})
    modules_to_save: list[str] | None = None
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None

    method_class: ClassVar[type[GeneratedMethod]]

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = self.method_class.model_fields["name"].default.upper()
        self.method(["any"])
        if self.hidden < self.r:
            text = (
                f"hidden = {self.hidden} is below r = {self.r}; the update's rank is at most {self.hidden}."
            )
            warnings.warn(text, stacklevel=3)

    def method(self, names: Sequence[str]) -> GeneratedMethod:
        """The method on targets of these names.

        Raises:
            ConfigError: If a field is wrong.
        """
        plain = [name for name in dict.fromkeys(names) if name in self.plain_modules]
        generated = [name for name in dict.fromkeys(names) if name not in self.plain_modules]
        fields: dict[str, Any] = {"rank": self.r, "targets": generated, "plain_targets": plain}
        for name in set(self.method_class.model_fields) - set(fields) - {"name"}:
            fields[name] = getattr(self, name)
        method, faults = validate(self.method_class, fields)
        if method is None:
            raise config_error(faults, {}, f"{type(self).__name__} (r is the rank)")
        return method


@dataclass
class RepLoraConfig(GeneratedConfig):
    """RepLoRA for `peft.get_peft_model`: A and B are outputs of generators shared by a block's targets."""

    method_class: ClassVar[type[GeneratedMethod]] = ReploraMethod


@dataclass
class DoranConfig(GeneratedConfig):
    """DoRAN for `peft.get_peft_model`: generated A and B, and noise in DoRA's norm."""

    seed: str = "dense"
    composition: str = "noised"

    method_class: ClassVar[type[GeneratedMethod]] = DoranMethod


@dataclass
class HoraConfig(GeneratedConfig):
    """HoRA for `peft.get_peft_model`: a B for each attention head, from networks that the heads share."""

    seed: str = "dense"

    method_class: ClassVar[type[GeneratedMethod]] = HoraMethod


#: By the method's own name.
CONFIGS: dict[str, type[GeneratedConfig]] = {
    "replora": RepLoraConfig,
    "doran": DoranConfig,
    "hora": HoraConfig,
}

for _name, _config in CONFIGS.items():
    _type: Any = _name.upper()  # PEFT's own names are an enumeration of text
    PEFT_TYPE_TO_CONFIG_MAPPING[_type] = _config
    PEFT_TYPE_TO_TUNER_MAPPING[_type] = ReploraTuner
    PEFT_TYPE_TO_PREFIX_MAPPING[_type] = ReploraTuner.prefix
