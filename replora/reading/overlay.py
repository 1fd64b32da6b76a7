"""Laying one piece of configuration data over another: sections merge, values replace.

Where the `name` of a section with variants changes (another method, another task), the fields of the
old variant that the new one lacks are dropped.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel

from replora.reading.faults import Keys
from replora.reading.schema import Annotation, element_of, is_section, section_model, tag_of, variants_of

__all__ = ["nested", "overlay", "split_key", "with_default_names"]


def overlay(annotation: Annotation, below: object, above: object) -> object:
    """`above` laid over `below`, both plain data for the same annotation."""
    above = _spelled_out(annotation, above)
    if not isinstance(above, Mapping):
        return above
    kept = _kept(annotation, below, above)
    merged: dict[str, object] = {**kept}
    if (name := above.get("name")) is not None:
        merged["name"] = name
    for key, value in above.items():
        merged[key] = overlay(element_of(annotation, merged, key), kept.get(key), value)
    return merged


def with_default_names(model: type[BaseModel], data: object) -> object:
    """The data with the name of the default variant in sections that give fields but no name."""
    if not isinstance(data, dict):
        return data
    filled = dict(data)
    for key, info in model.model_fields.items():
        section, default = filled.get(key), info.default
        if not isinstance(section, dict) or not isinstance(default, BaseModel):
            continue
        if variants_of(info.annotation):
            filled[key] = {"name": getattr(default, "name", None), **section}
        elif (below := section_model(info.annotation, section)) is not None:
            filled[key] = with_default_names(below, section)
    return filled


def nested(keys: Keys, value: object) -> object:
    """A value under keys: `("optim", "lr"), 1` gives `{"optim": {"lr": 1}}`."""
    for key in reversed(keys):
        value = {str(key): value}
    return value


def split_key(annotation: Annotation, data: object, key: str) -> Keys:
    """A dotted key as keys; a mapping's own keys that hold dots (`space.optim.lr.values`) stay whole."""
    keys: Keys = ()
    words = key.split(".")
    while words:
        taken = 1
        if isinstance(data, Mapping) and section_model(annotation, data) is None:
            whole = [count for count in range(1, len(words) + 1) if ".".join(words[:count]) in data]
            taken = max(whole, default=max(1, len(words) - 1))
        word, words = ".".join(words[:taken]), words[taken:]
        keys = (*keys, word)
        annotation = element_of(annotation, data, word)
        data = data.get(word) if isinstance(data, Mapping) else None
    return keys


def _spelled_out(annotation: Annotation, data: object) -> object:
    """A section written as its name alone becomes a section; `image_folder` becomes `image-folder`."""
    if isinstance(data, str) and is_section(annotation) and _has_name(annotation):
        data = {"name": data}
    name, variants = tag_of(data), variants_of(annotation)
    if isinstance(data, Mapping) and name is not None and name not in variants:
        hyphenated = name.replace("_", "-")
        return {**data, "name": hyphenated} if hyphenated in variants else data
    return data


def _has_name(annotation: Annotation) -> bool:
    model = section_model(annotation, None)
    return bool(variants_of(annotation)) or (model is not None and "name" in model.model_fields)


def _kept(annotation: Annotation, below: object, above: Mapping[str, object]) -> dict[str, object]:
    """What stays of `below`: everything, or, where the name changes, what the new variant has too."""
    kept = dict(below) if isinstance(below, Mapping) else {}
    old, new = section_model(annotation, kept), section_model(annotation, {**kept, **above})
    if old is None or new is None or old is new:
        return kept
    gone = set(old.model_fields) - set(new.model_fields)
    return {key: value for key, value in kept.items() if key not in gone}
