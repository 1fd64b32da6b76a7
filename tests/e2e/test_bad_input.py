"""What a user can get wrong, through the command line: a status, one clean message, and no traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from replora.cli import main
from tests.waiting import PATIENCE_S

SWEEP = "name: s\nspace: {optim.lr: {values: [0.001]}}\n"
CASES: dict[str, tuple[str, str, list[str], int, str]] = {
    # verb, content of in.yaml, further words, status, a part of the message
    "unknown key": ("show", "method: {name: lora, rnk: 2}\n", [], 2, "rank"),
    "unknown method": ("show", "method: lroa\n", [], 2, "Did you mean lora?"),
    "unknown backbone": ("show", "backbone: vit-digit\n", [], 2, "vit-digits"),
    "unknown task": ("show", "task: digit\n", [], 2, "digits"),
    "rank above width": ("show", "method: {name: lora, rank: 65}\n", [], 2, "rank"),
    "rank zero": ("show", "method: {name: lora, rank: 0}\n", [], 2, "rank"),
    "not YAML": ("show", "a: [1\n", [], 2, "in.yaml"),
    "not text": ("show", "\x00\x01", [], 2, "in.yaml"),
    "no mapping": ("show", "- 1\n", [], 2, "in.yaml"),
    "bad override": ("show", "{}\n", ["optim.lrr=1"], 2, "optim.lr"),
    "micro-batch": ("show", "train: {batch: 16, micro_batch: 3}\n", [], 2, "must divide"),
    "no space": ("sweep", "name: s\n", [], 2, "space"),
    "unknown space key": ("sweep", "name: s\nspace: {optim.lrr: {values: [1]}}\n", [], 2, "optim.lr"),
    "wrong space value": ("sweep", "name: s\nspace: {optim.lr: {values: [-1]}}\n", [], 2, "optim.lr"),
    "a name that is a path": ("sweep", SWEEP.replace("s\n", "../s\n", 1), [], 2, "name"),
    "a folder that cannot be": ("sweep", SWEEP, ["--in-process", "--dir", "/proc/none/s"], 3, "/proc/none/s"),
    "a folder that is a file": ("sweep", SWEEP, ["--in-process", "--dir", "in.yaml"], 3, "in.yaml"),
}


def assert_clean(status: int, out: str, err: str, expected: int, words: str) -> None:
    assert "Traceback" not in err
    assert status == expected, err
    assert words in err
    assert out == ""
    assert len(err.splitlines()) < 12, err


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_in_a_file_is_one_message(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    verb, content, more, status, words = CASES[name]
    (folder / "in.yaml").write_text(content)
    found = main([verb, "in.yaml", *more])
    assert_clean(found, *capsys.readouterr(), status, words)
    assert [path.name for path in folder.iterdir()] == ["in.yaml"]
    assert (folder / "in.yaml").read_text() == content


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["show", "missing.yaml"], 2, "missing.yaml"),
        (["resume", "missing"], 2, "not a sweep's folder"),
        (["best", "missing"], 2, "not a sweep's folder"),
        (["sweep", "smoek"], 2, "Did you mean smoke?"),
        (["swep"], 2, "sweep"),
    ],
    ids=["show", "resume", "best", "sweep", "verb"],
)
def test_what_is_not_there_is_one_message(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], status: int, message: str
) -> None:
    assert_clean(main(words), *capsys.readouterr(), status, message)
    assert list(folder.iterdir()) == []


def test_a_mistake_in_a_file_is_one_message_of_the_program(folder: Path) -> None:
    (folder / "in.yaml").write_text("method: lroa\n")
    command = [sys.executable, "-m", "replora", "show", "in.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert_clean(done.returncode, done.stdout, done.stderr, 2, "Did you mean lora?")
