"""From YAML files, dotted overrides and points of a space to configurations, and back to differences."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from replora.check import run_faults
from replora.config import GeneratedMethod, RunConfig
from replora.errors import ConfigError
from replora.reading.compose import expanded, run_part
from replora.reading.document import Document, parse_override, read_document
from replora.reading.faults import Fault, Keys, Origin, config_error, dotted, shown
from replora.reading.overlay import nested, overlay, split_key, with_default_names
from replora.reading.schema import is_place, variants_of
from replora.reading.validate import validate

__all__ = ["data_below", "diff", "load", "load_run", "run_from", "valid_keys"]

Model = TypeVar("Model", bound=BaseModel)
Scalar = bool | int | float | str | None


def load(
    model_class: type[Model],
    path: Path | str,
    overrides: Sequence[str] = (),
    check: Callable[[Model], Iterable[Fault]] | None = None,
) -> Model:
    """A configuration from a YAML file and overrides.

    Args:
        model_class: What the file describes, for example `RunConfig` or `SweepConfig`.
        path: The file.
        overrides: `key.path=value`, laid over the file; values are YAML.
        check: Further faults of a valid model, to be reported with the file's lines.

    Raises:
        ConfigError: With every fault of the file and the overrides.
    """
    document = expanded(model_class, read_document(Path(path)), (Path(path),))
    return _finish(model_class, document, overrides, str(path), check)


def load_run(path: Path | str, overrides: Sequence[str] = ()) -> RunConfig:
    """A run from its YAML file, or from a file that holds it under `run:` (`best.yaml`, `config.yaml`).

    The method is checked against the backbone where its sizes are known without building it.

    Raises:
        ConfigError: With every fault of the file and the overrides.
    """
    document = run_part(read_document(Path(path)), str(path))
    document = expanded(RunConfig, document, (Path(path),))
    config = _finish(RunConfig, document, overrides, str(path), run_faults)
    method = config.method
    if isinstance(method, GeneratedMethod) and method.hidden < method.rank:
        warnings.warn(
            f"{path}: method.hidden = {method.hidden} is below method.rank = {method.rank}; "
            f"the update's rank is at most {method.hidden}.",
            UserWarning,
            stacklevel=2,
        )
    return config


def run_from(base: RunConfig, point: Mapping[str, Scalar | Sequence[Scalar]]) -> RunConfig:
    """The run at a point: dotted keys set on a base, for example `{"optim.lr": 0.01}`.

    A changed `method.name` or `task.name` keeps the fields that both have, where they differ from the old
    one's defaults; the rest are the new one's own defaults.

    Raises:
        ConfigError: With every fault of the point.
    """
    document = Document(data_below(base, point), {})
    for key, value in _names_first(point.items()):
        plain = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
        _put(RunConfig, document, key, plain, Origin(f"point {key}={shown(value)}"))
    config, faults = validate(RunConfig, document.data)
    if config is not None:
        faults = run_faults(config)
    if config is None or faults:
        raise config_error(faults, document.origins, "the point")
    return config


def data_below(base: RunConfig, point: Mapping[str, Any]) -> dict[str, Any]:
    """The base as plain data, without the defaults of variants that the point replaces."""
    data: dict[str, Any] = base.model_dump(mode="json")
    for key, info in RunConfig.model_fields.items():
        section = getattr(base, key)
        wanted = point.get(f"{key}.name", point.get(key, getattr(section, "name", None)))
        if variants_of(info.annotation) and wanted != section.name:
            data[key] = {"name": section.name, **section.model_dump(mode="json", exclude_defaults=True)}
    return data


def valid_keys(config: BaseModel, prefix: str = "") -> tuple[str, ...]:
    """Dotted keys that a sweep may set on this configuration with its present method and task.

    Places on this machine, and `engine`, are left out, because a fingerprint does not show them.
    """
    keys: list[str] = []
    for name, info in type(config).model_fields.items():
        value = getattr(config, name)
        if is_place(info.annotation):
            continue
        if isinstance(value, BaseModel):
            keys += valid_keys(value, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return tuple(keys)


def diff(one: BaseModel, other: BaseModel) -> list[str]:
    """Readable differences, for example `optim.lr: 0.001 -> 0.01`; empty for equal configurations.

    The order of keys is no difference, that of lists is.
    """
    before, after = _flat(one.model_dump(mode="json")), _flat(other.model_dump(mode="json"))
    keys = [*before, *(key for key in after if key not in before)]
    return [
        f"{key}: {_side(before, key)} -> {_side(after, key)}"
        for key in keys
        if json.dumps(before.get(key, _ABSENT)) != json.dumps(after.get(key, _ABSENT))
    ]


def _finish(
    model_class: type[Model],
    document: Document,
    overrides: Sequence[str],
    place: str,
    check: Callable[[Model], Iterable[Fault]] | None,
) -> Model:
    """Overrides, validation and the check, on data whose `extends` are resolved."""
    values: list[tuple[str, Document]] = []
    faults = list(document.faults)
    for text in overrides:
        try:
            values.append(parse_override(text))
        except ConfigError as error:
            faults.append(Fault((), str(error), origin=Origin("command line")))
    for key, value in _names_first(values):
        faults += value.faults
        _put(model_class, document, key, value.data, Origin(f"override {key}={shown(value.data)}"))
    config, found = validate(model_class, with_default_names(model_class, document.data))
    faults += found
    if config is not None and check is not None and not faults:
        faults += check(config)
    if config is None or faults:
        raise config_error(faults, document.origins, place)
    return config


def _put(model_class: type[BaseModel], document: Document, key: str, value: object, origin: Origin) -> None:
    keys = split_key(model_class, document.data, key)
    document.data = overlay(model_class, document.data, nested(keys, value))
    for length in range(1, len(keys)):
        document.origins.setdefault(keys[:length], origin)
    document.origins[keys] = origin


#: What `diff` shows for a key that one side lacks.
_ABSENT = "(none)"


def _names_first(items: Iterable[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Sections before their names before their other fields, so that the order typed does not matter."""
    return sorted(items, key=lambda item: (item[0].count("."), not item[0].endswith("name")))


def _flat(data: object, keys: Keys = ()) -> dict[str, object]:
    if isinstance(data, list) and any(isinstance(item, Mapping) for item in data):
        data = dict(enumerate(data))
    if isinstance(data, Mapping):
        return {
            key: leaf for name, below in data.items() for key, leaf in _flat(below, (*keys, name)).items()
        }
    return {dotted(keys): data}


def _side(flat: Mapping[str, object], key: str) -> str:
    return shown(flat[key], 400) if key in flat else _ABSENT
