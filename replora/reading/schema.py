"""What configuration models say of keys: sections, the variants behind a `name`, valid fields.

Works on any pydantic models that follow the house form: sections are models, and a section with
variants is a union of models that each have a field `name: Literal[...]`. What an annotation says is worked
out once: a sweep asks it for every key of every trial.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from replora.frozen import Place

__all__ = [
    "Annotation",
    "element_of",
    "field_keys",
    "is_place",
    "is_section",
    "section_model",
    "tag_of",
    "variants_of",
]

# An annotation is whatever typing accepts: a class, a union, an alias.
Annotation = Any


def variants_of(annotation: Annotation) -> Mapping[str, type[BaseModel]]:
    """Models by their `name` where an annotation is a union of such models, else nothing."""
    return _variants(annotation)


def section_model(annotation: Annotation, data: object) -> type[BaseModel] | None:
    """The model that checks `data` at this annotation; None where it is no section or the name is unknown."""
    variants = variants_of(annotation)
    if variants:
        return variants.get(tag_of(data) or "")
    models = _models(annotation)
    return models[0] if len(models) == 1 else None


def is_section(annotation: Annotation) -> bool:
    """Whether a mapping of fields belongs here."""
    return bool(_models(annotation))


def tag_of(data: object) -> str | None:
    """The `name` in a section's data."""
    name = data.get("name") if isinstance(data, Mapping) else None
    return name if isinstance(name, str) else None


def element_of(annotation: Annotation, data: object, key: str | int) -> Annotation:
    """The annotation of `data[key]`; None where nothing is known of it."""
    model = None if isinstance(data, list) else section_model(annotation, data)
    if model is not None:
        info = model.model_fields.get(str(key))
        return None if info is None else info.annotation
    for part in _members(annotation):
        arguments = get_args(part)
        if arguments and _generic(part) in (dict, tuple, list):
            return arguments[-1] if _generic(part) is dict else arguments[0]
    return None


def field_keys(annotation: Annotation, prefix: str = "") -> Iterator[str]:
    """Dotted keys of every leaf below an annotation, over all variants; may repeat."""
    for model in _models(annotation):
        for name, info in model.model_fields.items():
            below = info.annotation
            if is_section(below):
                yield from field_keys(below, f"{prefix}{name}.")
            else:
                yield prefix + name


def is_place(annotation: Annotation) -> bool:
    """Whether a field says where or how a run is computed, not what: a path, or a section of that kind."""
    return _is_place(annotation)


@cache
def _variants(annotation: Annotation) -> Mapping[str, type[BaseModel]]:
    models = _models(annotation)
    tagged = {tag: model for model in models for tag in _tags(model)}
    return MappingProxyType(tagged if len(models) > 1 and len(tagged) >= len(models) else {})


@cache
def _is_place(annotation: Annotation) -> bool:
    return any(isinstance(part, type) and issubclass(part, Path | Place) for part in _members(annotation))


@cache
def _models(annotation: Annotation) -> tuple[type[BaseModel], ...]:
    return tuple(
        part for part in _members(annotation) if isinstance(part, type) and issubclass(part, BaseModel)
    )


@cache
def _members(annotation: Annotation) -> tuple[Annotation, ...]:
    """The members of a union, or the annotation itself, without `Annotated` around them."""
    if _generic(annotation) is typing.Annotated:
        return _members(get_args(annotation)[0])
    if _generic(annotation) in (Union, types.UnionType):
        return tuple(part for member in get_args(annotation) for part in _members(member))
    return (annotation,)


def _generic(annotation: Annotation) -> object:
    return get_origin(annotation)


def _tags(model: type[BaseModel]) -> tuple[str, ...]:
    info = model.model_fields.get("name")
    if info is None or get_origin(info.annotation) is not Literal:
        return ()
    return tuple(str(tag) for tag in get_args(info.annotation))
