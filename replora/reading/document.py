"""YAML text as plain data that remembers the line of every value.

The safe subset that configurations need: YAML 1.2's scalars (so `1e-3` is a number, and `yes` and `no`
are text), no anchors, no tags of other types, no duplicate keys. Nothing in a file can run code, and
no file can grow when it is read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

from replora.errors import ConfigError
from replora.reading.faults import Fault, Keys, Origin, dotted, printable, shown

__all__ = ["Document", "parse_override", "parse_yaml", "read_document"]

_MAX_DEPTH = 20  # Nothing that is configured here is deeper than 6.
_TAG = "tag:yaml.org,2002:"


@dataclass
class Document:
    """Plain data with the origin of every value and the faults found while it was read."""

    data: object = None
    origins: dict[Keys, Origin] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)


class _Loader(yaml.SafeLoader):
    """Resolves scalars as YAML 1.2's core schema does, and refuses aliases."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            said = f"aliases (*{event.anchor}) are not allowed here; write the value out"
            raise yaml.composer.ComposerError(None, None, said, event.start_mark)
        return super().compose_node(parent, index)


for _name, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    _Loader.add_implicit_resolver(f"{_TAG}{_name}", re.compile(rf"(?:{_pattern})\Z", re.ASCII), _first)


def read_document(path: Path) -> Document:
    """The content of a YAML file.

    Raises:
        ConfigError: If the file cannot be read or is not YAML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(f"{printable(str(path))} cannot be read: {reason}.") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, place: str) -> Document:
    """YAML text as data; faults that leave it readable are collected in the document.

    Args:
        text: One YAML document.
        place: What origins name, for example the path of the file.

    Raises:
        ConfigError: If the text is not YAML.
    """
    document = Document()
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
        finally:
            loader.dispose()
        document.data = _Reader(document, place).value(node, ()) if node is not None else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = Origin(place, mark.line + 1) if mark else Origin(place)
        problem = " ".join(filter(None, (error.context, error.problem))) or "unknown problem"
        raise ConfigError(f"{where}: not valid YAML: {printable(problem)}.") from error
    except yaml.reader.ReaderError as error:
        said = f"character {shown(error.character)} at position {error.position} is not allowed"
        raise ConfigError(f"{place}: not valid YAML: {said}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{place}: not valid YAML: {printable(str(error))}.") from error
    except RecursionError as error:
        raise ConfigError(f"{place}: nested too deeply.") from error
    return document


def parse_override(text: str) -> tuple[str, Document]:
    """The dotted key and the value of `key=value`; the value is YAML, for example `[query, key]`.

    Raises:
        ConfigError: If the text is not of that form.
    """
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")) or not value.strip():
        raise ConfigError(
            f"override {shown(text)} must be key=value, for example optim.lr=1e-3 (key=null for no value)."
        )
    document = parse_yaml(value, "value")
    place = Origin(f"override {printable(text)}")
    document.faults = [replace(fault, origin=place) for fault in document.faults]
    return key, document


class _Reader:
    """Turns YAML nodes into plain data, noting origins and faults."""

    def __init__(self, document: Document, place: str) -> None:
        self._document = document
        self._place = place

    def value(self, node: yaml.Node, keys: Keys) -> object:
        """Plain data of a node that stands at `keys`."""
        self._document.origins.setdefault(keys, Origin(self._place, node.start_mark.line + 1))
        if len(keys) > _MAX_DEPTH:
            return self._refuse(keys, "is nested too deeply")
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, keys)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            return [self.value(item, (*keys, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
            return self._mapping(node, keys)
        return self._refuse(keys, f"has the tag {shown(node.tag)}, which is not allowed here")

    def _mapping(self, node: yaml.MappingNode, keys: Keys) -> dict[str, object]:
        data: dict[str, object] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self._refuse(keys, f"needs a field's name in line {line}, but got a list or a mapping")
                continue
            key = str(key_node.value)
            child = (*keys, key)
            self._document.origins[child] = Origin(self._place, line)
            if key in lines:
                self._refuse(child, f"is given twice, in lines {lines[key]} and {line}")
                continue
            lines[key] = line
            self._check_text(key, child)
            data[key] = self.value(value_node, child)
        return data

    def _scalar(self, node: yaml.ScalarNode, keys: Keys) -> object:
        text = str(node.value)
        try:
            match node.tag.removeprefix(_TAG):
                case "null":
                    return None
                case "bool":
                    return {"true": True, "false": False}[text.lower()]
                case "int":
                    return int(text)
                case "float":
                    return float(re.sub(r"\.(?=inf|nan)", "", text.lower()))
                case "str":
                    return self._check_text(text, keys)
        except (ValueError, KeyError):
            return self._refuse(keys, f"is not a valid {node.tag.removeprefix(_TAG)}: {shown(text)}")
        return self._refuse(keys, f"has the tag {shown(node.tag)}, which is not allowed here")

    def _check_text(self, text: str, keys: Keys) -> str:
        """The text, with a fault where it has lone surrogates, which no file can hold."""
        if any("\ud800" <= character <= "\udfff" for character in text):
            self._refuse(keys, f"is not valid Unicode text: {shown(text)}")
            return text.encode("utf-8", "replace").decode()
        return text

    def _refuse(self, keys: Keys, text: str) -> object:
        """Notes a fault; null stands in for the value."""
        origin = self._document.origins[keys]
        self._document.faults.append(Fault(keys, f"{dotted(keys) or 'the value'} {text}.", origin=origin))
        return None
