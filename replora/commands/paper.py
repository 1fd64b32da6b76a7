"""`replora paper`: the paper's tables beside PPT recomputed."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from replora.verbs import Answer, Verb, table

__all__ = ["PAPER"]

_COLUMNS = ("table", "backbone", "method", "metric", "parameters", "printed", "ppt", "plus sign", "fits")
_NOTE = """
PPT = M exp(-log10(P / 1e7 + 1)), M the metric in [0, 1], P trainable parameters. The column "plus sign"
is the paper's inconsistent variant, which rewards parameters; nothing else here uses it. "none" marks a
printed PPT that neither sign gives, rounded or truncated."""


def _configure(parser: argparse.ArgumentParser) -> None:
    """No arguments of its own."""


def _run(options: argparse.Namespace) -> Answer:
    from replora.paper import paper_rows

    rows = [asdict(row) for row in paper_rows()]
    shown = [{**row, "ppt": _digits(row["minus"]), "plus sign": _digits(row["plus"])} for row in rows]
    return Answer(rows, table(shown, _COLUMNS) + "\n" + _NOTE)


def _digits(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"


PAPER = Verb("paper", "show the paper's result tables beside PPT recomputed", _configure, _run)
