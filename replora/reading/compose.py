"""What run files are made of: recipes, `extends`, and runs inside other files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from replora.config import RunConfig
from replora.errors import ConfigError
from replora.reading.document import Document, read_document
from replora.reading.faults import Fault, Keys, Origin, shown
from replora.reading.overlay import overlay
from replora.reading.schema import Annotation, element_of
from replora.verbs import nearest

__all__ = ["RECIPES", "expanded", "find_run", "recipe_names", "run_part"]

RECIPES = Path(__file__).parents[1] / "recipes"


def find_run(name: str) -> Path:
    """The file that a user means: a path, or the name of a recipe.

    Raises:
        ConfigError: If it is neither; the message lists the recipes.
    """
    names = recipe_names()
    if name in names and not _is_there(Path(name)):
        return RECIPES / f"{name}.yaml"
    if not _is_there(Path(name)):
        raise ConfigError(
            f"{name} is neither a file nor a recipe.\n  {nearest(name, names)}Recipes: {', '.join(names)}."
        )
    return Path(name)


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def run_part(document: Document, place: str) -> Document:
    """The run in a file: the whole of it, or what stands under `run:` (`best.yaml`, a run's `config.yaml`).

    Raises:
        ConfigError: If the file is a sweep.
    """
    data = document.data
    if not isinstance(data, dict) or "run" not in data:
        return document
    if "space" in data:
        raise ConfigError(f"{place} is a sweep, not a run: it has a space.\n  Use `replora sweep {place}`.")
    faults = [replace(fault, keys=fault.keys[1:]) for fault in document.faults]
    return Document(data["run"], _inside(document, "run"), faults)


def expanded(annotation: Annotation, document: Document, chain: tuple[Path, ...]) -> Document:
    """The document laid over what its `extends` name, here and in every section that is a run."""
    if document.data is None:
        document.data = {}
    if not isinstance(document.data, dict):
        return document
    for key in [key for key in document.data if element_of(annotation, document.data, key) is RunConfig]:
        document.data[key] = _expanded_section(document, document.data[key], key, chain)
    if annotation is RunConfig and "extends" in document.data:
        return _extended(document, document.data, chain)
    document.data = overlay(annotation, None, document.data)
    return document


def _expanded_section(document: Document, section: object, key: str, chain: tuple[Path, ...]) -> object:
    part = expanded(RunConfig, Document(section, _inside(document, key)), chain)
    document.origins |= {(key, *keys): origin for keys, origin in part.origins.items()}
    document.faults += [replace(fault, keys=(key, *fault.keys)) for fault in part.faults]
    return part.data


def _inside(document: Document, key: str) -> dict[Keys, Origin]:
    return {keys[1:]: origin for keys, origin in document.origins.items() if keys[:1] == (key,)}


def _extended(document: Document, data: Mapping[str, object], chain: tuple[Path, ...]) -> Document:
    own = {key: value for key, value in data.items() if key != "extends"}
    try:
        path = _find(data["extends"], chain)
        base = expanded(RunConfig, read_document(path), (*chain, path))
    except ConfigError as error:
        base = Document({}, {}, [Fault((), str(error), origin=document.origins[("extends",)])])
    faults = base.faults + document.faults
    return Document(overlay(RunConfig, base.data, own), {**base.origins, **document.origins}, faults)


def _find(name: object, chain: tuple[Path, ...]) -> Path:
    """The recipe or file that `extends` names."""
    if not isinstance(name, str):
        raise ConfigError(f"extends must be the name of a recipe or a file, but got {shown(name)}.")
    if name in recipe_names():
        return RECIPES / f"{name}.yaml"
    path = chain[-1].parent / name
    if not name.endswith((".yaml", ".yml")) or not _is_there(path):
        names = recipe_names()
        raise ConfigError(
            f"extends must be the name of a recipe or a .yaml file, but got {shown(name)}.\n"
            f"  {nearest(name, names)}Recipes: {', '.join(names)}."
        )
    if path.resolve() in {known.resolve() for known in chain}:
        raise ConfigError(f"extends goes round in a circle: {' -> '.join(map(str, (*chain, path)))}.")
    return path


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that no file can have, for example one that is too long
        return False
