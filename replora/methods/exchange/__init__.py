"""The only package that knows PEFT: adapters as folders for other programs, and our methods inside PEFT.

The names below are found on first use, because PEFT and torch are slow to import. Importing one of the
configurations registers the methods with PEFT (docs/peft.md).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from replora.methods.exchange.configs import DoranConfig, HoraConfig, RepLoraConfig
    from replora.methods.exchange.folders import export, import_peft

__all__ = ["DoranConfig", "HoraConfig", "RepLoraConfig", "export", "import_peft"]

_HOMES = dict.fromkeys(("DoranConfig", "HoraConfig", "RepLoraConfig"), "configs")
_HOMES |= dict.fromkeys(("export", "import_peft"), "folders")


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
