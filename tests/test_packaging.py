"""Ranges, pins and the dependencies page agree, and a wheel would carry what the program reads."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINES = (ROOT / "constraints.txt").read_text().splitlines()
PINS = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in LINES)}
EXTRAS = PROJECT["optional-dependencies"]
INSTALLED = ("cma", "deepspeed", "postgres", "test")
TEXTS = [*PROJECT["dependencies"], *(text for name in INSTALLED for text in EXTRAS[name])]
REQUIREMENTS = [Requirement(text) for text in TEXTS]


def test_every_constraint_is_an_exact_version_from_no_named_host() -> None:
    assert [line for line in LINES if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line)] == []


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_the_pin_lies_in_the_range(requirement: Requirement) -> None:
    assert PINS[canonicalize_name(requirement.name)] in requirement.specifier


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_the_dependencies_page_gives_a_reason(requirement: Requirement) -> None:
    rows = [row for row in (ROOT / "docs/dependencies.md").read_text().splitlines() if row.startswith("| ")]
    assert any(re.search(rf"\b{re.escape(requirement.name)}\b", row.split("|")[1]) for row in rows)


def test_every_data_file_matches_the_package_data() -> None:
    globs = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["*"]
    kept = {Path(pattern).suffix for pattern in globs} | {".py"}
    files = [
        path
        for package in ("ablations", "cluster", "replora", "sweeps")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.name != "py.typed"
    ]
    assert [path for path in files if path.suffix not in kept] == []
