"""From plain data to a configuration model, with pydantic's findings said in the house's words."""

from __future__ import annotations

import json
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from replora.reading.faults import Fault, Keys, dotted, shown
from replora.reading.schema import Annotation, element_of, field_keys, section_model, tag_of, variants_of
from replora.verbs import nearest

__all__ = ["validate"]

Model = TypeVar("Model", bound=BaseModel)

_START = "Input should be "
_WORDS = {
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "a valid integer": "an integer",
    "a valid number": "a number",
    "a valid boolean": "true or false",
    "a valid string": "text",
    "a valid array": "a list",
}


def validate(model_class: type[Model], data: object) -> tuple[Model | None, list[Fault]]:
    """The model, or None and every fault of the data.

    Types are checked strictly, as in JSON: `true` is no number and `"8"` no integer; an integer is
    accepted where a float is needed.
    """
    try:
        return model_class.model_validate_json(json.dumps(data), strict=True), []
    except ValidationError as error:
        return None, _faults(error, model_class, data)


def _faults(error: ValidationError, model_class: type[BaseModel], data: object) -> list[Fault]:
    by_keys: dict[Keys, list[ErrorDetails]] = {}
    for details in error.errors(include_url=False):
        by_keys.setdefault(_keys(details, model_class, data), []).append(details)
    return [_fault(keys, found, model_class, data) for keys, found in by_keys.items()]


def _keys(details: ErrorDetails, annotation: Annotation, data: object) -> Keys:
    """The error's place without the tags and labels of unions, which pydantic mixes into it."""
    keys: Keys = ()
    parts = iter(details["loc"])
    for part in parts:
        if variants_of(annotation):
            annotation = section_model(annotation, data)
            continue
        if isinstance(part, str) and part.startswith("(") and not _has(data, part):
            continue  # the tag of "one or several", `sweeps.config.Objectives`
        last_of_missing = details["type"] == "missing" and part == details["loc"][-1]
        if not last_of_missing and not _has(data, part):
            break
        keys = (*keys, part)
        annotation = element_of(annotation, data, part)
        data = _item(data, part)
    return keys


def _has(data: object, key: str | int) -> bool:
    if isinstance(data, list):
        return isinstance(key, int) and key < len(data)
    return isinstance(data, dict) and key in data


def _item(data: object, key: str | int) -> object:
    if isinstance(data, list) and isinstance(key, int):
        return data[key] if key < len(data) else None
    return data.get(key) if isinstance(data, dict) else None


def _fault(keys: Keys, found: list[ErrorDetails], model_class: type[BaseModel], data: object) -> Fault:
    details, key = found[0], dotted(keys)
    value = shown(details.get("input"))
    match details["type"]:
        case "extra_forbidden":
            return _unknown_field(keys, model_class, data)
        case "missing":
            return Fault(keys, f"{key} is missing: {_owner(keys, model_class, data)} needs it.")
        case "union_tag_invalid" | "union_tag_not_found":
            return _unknown_variant(keys, model_class, data)
        case "literal_error":
            names = [name.strip("'") for name in _expected(details).replace(" or ", ", ").split(", ")]
            hint = nearest(str(details.get("input")), names).strip()
            return Fault(keys, f"{key} must be {_expected(details)}, but got {value}.", hint)
        case "model_type" | "model_attributes_type" | "dict_type":
            what = f"{key} must be a section" if keys else "the file must hold sections"
            hint = getattr(section_model(*_at(keys, model_class, data)), "HINT", "")
            return Fault(keys, f"{what} (a mapping of fields), but got {value}.", hint)
        case "value_error":
            said = str(details["ctx"]["error"])
            return Fault(_named(said, keys), f"{said.rstrip('.')}.")
    wanted = " or ".join(dict.fromkeys(_wanted(each["msg"]) for each in found))
    must = "must be" if details["msg"].startswith(_START) else "must"
    return Fault(keys, f"{key} {must} {wanted}, but got {value}.")


def _wanted(message: str) -> str:
    """The message of pydantic without its start, in plainer words."""
    message = message.removeprefix(_START).split(" should ")[-1].split(" after validation, not ")[0]
    for theirs, ours in _WORDS.items():
        message = message.replace(theirs, ours)
    return message


def _unknown_field(keys: Keys, model_class: type[BaseModel], data: object) -> Fault:
    word, prefix = str(keys[-1]), dotted(keys[:-1])
    model = section_model(*_at(keys[:-1], model_class, data))
    fields = sorted(model.model_fields) if model else []
    hint = _elsewhere(keys, model_class, data) or nearest(word, fields, f"{prefix}." if prefix else "")
    listed = f"Fields: {', '.join(fields)}."
    return Fault(keys, f"{dotted(keys)} is not a field of {_owner(keys, model_class, data)}.", hint + listed)


def _elsewhere(keys: Keys, model_class: type[BaseModel], data: object) -> str:
    """Where a field belongs: `rank` at the top is meant for `method.rank`; `hidden` is of another method."""
    word = str(keys[-1])
    annotation, _ = _at(keys[:-1], model_class, data)
    having = [tag for tag, model in variants_of(annotation).items() if word in model.model_fields]
    if having:
        return f"Only {', '.join(having)} {'has' if len(having) == 1 else 'have'} it. "
    for key in field_keys(model_class):
        section, _, leaf = key.rpartition(".")
        if word == key:
            return f"Write {leaf} inside the section {section}. "
        if word == leaf:
            return f"Did you mean {key}? "
        if f".{word}." in key:
            return f"Did you mean {key[: key.index(f'.{word}.')]}.{word}? "
    return ""


def _unknown_variant(keys: Keys, model_class: type[BaseModel], data: object) -> Fault:
    annotation, section = _at(keys, model_class, data)
    names = list(variants_of(annotation))
    key = f"{dotted(keys)}.name"
    given = _item(section, "name")
    problem = f"{key} is missing" if given is None else f"{key} must be a known name, but got {shown(given)}"
    hint = nearest(str(given), names) if given is not None else ""
    return Fault((*keys, "name"), f"{problem}.", f"{hint}Names: {', '.join(names)}.")


def _owner(keys: Keys, model_class: type[BaseModel], data: object) -> str:
    """What the last key should be a field of: `the replora method`, `optim`, `a run`."""
    above = keys[:-1]
    annotation, section = _at(above, model_class, data)
    if variants_of(annotation):
        return f"the {tag_of(section)} {above[-1]}"
    return dotted(above) if above else f"a {model_class.__name__.removesuffix('Config').lower()}"


def _at(keys: Keys, annotation: Annotation, data: object) -> tuple[Annotation, object]:
    """The annotation and the data at `keys`, each None where there is none."""
    for key in keys:
        annotation, data = element_of(annotation, data, key), _item(data, key)
    return annotation, data


def _named(said: str, keys: Keys) -> Keys:
    """The field that a validator's own sentence begins with, so that the line is the field's."""
    first = tuple(said.split(" ", 1)[0].split("."))
    return first if first[: len(keys)] == keys else keys


def _expected(details: ErrorDetails) -> str:
    return str(details.get("ctx", {}).get("expected", ""))
