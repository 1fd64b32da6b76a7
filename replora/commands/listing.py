"""`replora ls`: what there is, by kind."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from replora.errors import ConfigError
from replora.methods.cards import METHODS
from replora.models import BACKBONES
from replora.models.shapes import shapes_of
from replora.offers import offers
from replora.reading.compose import RECIPES
from replora.tasks import TASKS
from replora.verbs import Answer, Verb, nearest, table

__all__ = ["LS"]

Row = dict[str, Any]
Catalog = Callable[[], list[Row]]


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "kind", nargs="?", help="methods, tasks, backbones, recipes, profiles or spaces; all if left out"
    )


def _run(options: argparse.Namespace) -> Answer:
    catalogs = _catalogs()
    if options.kind is None:
        rows = [{"kind": kind, **row} for kind, list_rows in catalogs.items() for row in list_rows()]
        return Answer(rows, table(rows, ("kind", "name", "summary")))
    if options.kind not in catalogs:
        hint = f"{nearest(options.kind, catalogs)}Kinds: {', '.join(catalogs)}."
        raise ConfigError(f"replora ls: {options.kind!r} is not a kind.\n  {hint}")
    rows = catalogs[options.kind]()
    columns = ("name", "parameters", "summary") if options.kind == "backbones" else ("name", "summary")
    return Answer(rows, table(rows, columns))


def _catalogs() -> dict[str, Catalog]:
    """Kinds of this package, then those that other packages offer as entry points."""
    own: dict[str, Catalog] = {
        "methods": _methods,
        "tasks": lambda: [{"name": name, "summary": summary} for name, summary in TASKS.items()],
        "backbones": _backbones,
        "recipes": _recipes,
    }
    return own | dict(offers("replora.catalogs"))


def _methods() -> list[Row]:
    return [{"name": name, "summary": card.claim} for name, card in METHODS.items()]


def _backbones() -> list[Row]:
    rows = []
    for name, summary in BACKBONES.items():
        shape = shapes_of(name)
        rows.append({"name": name, "parameters": shape and shape.base_parameters, "summary": summary})
    return rows


def _recipes() -> list[Row]:
    rows = []
    for path in sorted(RECIPES.glob("*.yaml")):
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        rows.append({"name": path.stem, "summary": first.removeprefix("#").strip(), "path": str(path)})
    return rows


LS = Verb("ls", "list methods, tasks, backbones, recipes, profiles and spaces", _configure, _run)
