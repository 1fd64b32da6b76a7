"""What README.md says can be typed, opened and run as it stands there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from replora.cli import main
from replora.load import load
from sweeps.config import SweepConfig

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BIN = Path(sys.executable).parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def blocks(language: str, before: str = "") -> list[str]:
    """Fenced blocks of a language; `before` is the line right above the fence."""
    return re.findall(rf"{re.escape(before)}\n```{language}\n(.*?)```", README, re.DOTALL)


def commands(block: str) -> list[list[str]]:
    """The words of each line of a shell block, without its comments."""
    return [words for line in block.splitlines() if (words := shlex.split(line, comments=True))]


COMMANDS = [words for block in blocks("sh") for words in commands(block)]
#: Where a document shows commands: shell blocks, indented lines and back quotes.
CODE = re.compile(r"```sh\n([^`]*)```|^ {4}([^\n]*)$|`([^`\n]+)`", re.MULTILINE)
SHOWN = re.compile(r"^replora ([a-z][a-z-]*)((?: .*(?:\\\n.*)?)?)", re.MULTILINE)
TOUR = [
    words for block in blocks("sh", "<!-- toured by tests/test_readme.py -->") for words in commands(block)
]


def run(words: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command with the environment's programs first on the path."""
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        words, cwd=cwd, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )


@pytest.fixture
def user_folder(tmp_path: Path) -> Path:
    """A folder in which the README's relative paths resolve, and that keeps `runs/` out of the tree."""
    for name in ("examples", "sweeps"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def test_every_command_is_of_a_known_program() -> None:
    assert {words[0] for words in COMMANDS} == {"make", "python", "replora"}


@pytest.mark.parametrize("target", sorted({words[1] for words in COMMANDS if words[0] == "make"}))
def test_make_target_exists(target: str) -> None:
    done = run(["make", "--dry-run", target], ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_options_shown_are_in_the_help_of_their_verb(
    document: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "\n".join(map("".join, CODE.findall(document.read_text(encoding="utf-8"))))
    for verb, rest in SHOWN.findall(code):
        assert main([verb, "--help"]) == 0, verb
        used = set(re.findall(r"(?<![\w-])--[a-z-]+", rest))
        assert used <= set(re.findall(r"--[a-z-]+", capsys.readouterr().out)), (verb, rest)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_to_files_resolve(document: Path) -> None:
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text)]
    local = [link for link in targets if link and "://" not in link]
    assert [link for link in local if not (document.parent / link).exists()] == []


def test_every_page_of_docs_is_in_its_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert {page for page in pages if f"({page})" not in index} == set()


@pytest.mark.parametrize(("document", "trials"), [("README.md", 30), ("docs/sweeps.md", 40)])
def test_the_sweep_shown_is_valid(tmp_path: Path, document: str, trials: int) -> None:
    block = (ROOT / document).read_text(encoding="utf-8").partition("```yaml\n")[2].partition("```")[0]
    (tmp_path / "sweep.yaml").write_text(block)
    assert load(SweepConfig, tmp_path / "sweep.yaml").search.trials == trials


@pytest.mark.slow
def test_the_tour_runs_as_written(user_folder: Path) -> None:
    assert len(TOUR) > 5
    for words in TOUR:
        done = run(words, user_folder)
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
    assert "opens with stock PEFT and agrees" in done.stdout


@pytest.mark.slow
def test_the_pack_example_trains_three_trials(tmp_path: Path) -> None:
    (block,) = blocks("python")
    done = run([sys.executable, "-c", block], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Finished(") == 3
