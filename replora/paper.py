"""The result tables of the RepLoRA paper beside PPT recomputed, with the rows that fit neither sign.

Parameters printed in percent are of the nominal 7 and 13 billion of LLaMA and of BART-base: only these bases
make the printed PPT come out (recomputed; see tests/replora/test_paper.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from replora.ppt import ppt, ppt_plus_sign_of_the_paper

__all__ = ["PaperRow", "paper_rows"]

TABLES = Path(__file__).parent / "data" / "paper_tables.yaml"
_BASES = {"llama-7b": 7e9, "llama-13b": 13e9, "vl-bart": 139_420_416}
#: Fewest parameters a row without a printed count can have: LoRA of rank 8 on query and value of ViT-B/16.
_FEWEST = {"lora": 294_912}


@dataclass(frozen=True)
class PaperRow:
    """One method in one table.

    Attributes:
        table: Name of the table.
        backbone: What was adapted.
        method: As the paper calls it.
        metric: Average of the table, in percent.
        parameters: Trainable parameters, or None where the table does not print them.
        printed: PPT as printed, or None where there is none.
        minus: PPT recomputed; None without parameters.
        plus: The same with the paper's other sign.
        fits: Sign that gives the printed PPT, rounded or truncated to two digits: `minus`, `plus` or
            `none`; `minus possible` where the parameters are not printed; empty without a printed PPT.
    """

    table: str
    backbone: str
    method: str
    metric: float
    parameters: int | None
    printed: float | None
    minus: float | None
    plus: float | None
    fits: str


def paper_rows() -> list[PaperRow]:
    """Every row that has an average, table by table."""
    tables = yaml.safe_load(TABLES.read_text(encoding="utf-8"))
    rows = []
    for backbone in ("llama-7b", "llama-13b"):
        rows += list(_rows("commonsense", backbone, tables["commonsense"][backbone]))
    for name in ("fgvc", "vtab_1k", "image_text", "video_text"):
        rows += list(_rows(name, tables[name]["backbone"], tables[name]))
    for data in ("ssv2", "hmdb51"):
        rows += list(_video_rows(data, tables["video"]))
    return rows


def _rows(table: str, backbone: str, entries: Mapping[str, Any]) -> Iterator[PaperRow]:
    for method, entry in entries.items():
        if isinstance(entry, dict) and "row" in entry:
            average, printed = entry.get("avg"), entry.get("ppt")
            if average is None:
                average, printed = entry["row"][-2:]
            percent = entry.get("params_pct")
            parameters = None if percent is None else _BASES[backbone] * percent / 100
            yield _row((table, backbone, method), average, parameters, printed)


def _video_rows(data: str, entries: Mapping[str, Any]) -> Iterator[PaperRow]:
    for method, entry in entries.items():
        if isinstance(entry, dict):
            names = (data, entries["backbone"], method)
            yield _row(names, entry[data], entry["params_m"] * 1e6, entry.get(f"{data}_ppt"))


def _row(
    names: tuple[str, str, str], metric: float, parameters: float | None, printed: float | None
) -> PaperRow:
    minus = plus = None
    if parameters is not None:
        minus = ppt(metric / 100, parameters)
        plus = ppt_plus_sign_of_the_paper(metric / 100, parameters)
    if printed is None:
        fits = ""
    elif minus is None or plus is None:
        largest = ppt(metric / 100, _FEWEST.get(names[2], 0))
        fits = "minus possible" if largest >= printed - 0.005 else "none"
    else:
        fits = next((sign for sign, v in (("minus", minus), ("plus", plus)) if _prints(v, printed)), "none")
    count = None if parameters is None else round(parameters)
    return PaperRow(*names, metric, count, printed, minus, plus, fits)


def _prints(value: float, printed: float) -> bool:
    """Whether a value, rounded or truncated to two digits, is the printed one."""
    return printed in (round(value, 2), math.floor(value * 100) / 100)
