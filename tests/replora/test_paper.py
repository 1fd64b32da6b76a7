"""PPT and the paper's tables: which rows fit which sign."""

from __future__ import annotations

import math

import pytest

from replora.cli import main
from replora.paper import paper_rows
from replora.ppt import ppt, ppt_plus_sign_of_the_paper


def test_ppt_falls_with_parameters_and_the_other_sign_rises() -> None:
    assert ppt(0.8, 0) == ppt_plus_sign_of_the_paper(0.8, 0) == 0.8
    assert ppt(0.8, 9e7) == pytest.approx(0.8 / math.e)
    assert ppt_plus_sign_of_the_paper(0.8, 9e7) == pytest.approx(0.8 * math.e)


def test_rows_that_fit_no_formula_are_the_known_ones() -> None:
    assert {(row.table, row.backbone, row.method) for row in paper_rows() if row.fits == "none"} == {
        ("commonsense", "llama-7b", "dora"),
        ("commonsense", "llama-13b", "adapter"),
        ("vtab_1k", "vit-b16-in21k", "prefix"),
        ("vtab_1k", "vit-b16-in21k", "lora"),
        ("hmdb51", "video-swin-b-k400", "lora"),
        ("ssv2", "video-swin-b-k400", "replora"),
    }


def test_language_tables_fit_only_the_plus_sign_and_video_only_the_minus_sign() -> None:
    signs: dict[str, set[str]] = {}
    for row in paper_rows():
        signs.setdefault(row.table, set()).add(row.fits)
    assert all(signs[t] - {"", "none"} == {"plus"} for t in ("commonsense", "image_text", "video_text"))
    assert all(signs[t] - {"", "none"} == {"minus"} for t in ("ssv2", "hmdb51"))


def test_paper_verb_marks_the_rows_that_fit_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["paper"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.endswith("none") for line in lines) == 6
    assert any(
        line.split()[:3] == ["commonsense", "llama-7b", "replora"] and "1.9590" in line for line in lines
    )
