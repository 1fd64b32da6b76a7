"""The verbs `sweep`, `resume`, `best` and `sync` as a person or a script calls them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from replora import cli
from replora.fingerprint import fingerprint
from replora.load import load_run
from sweeps import backend
from sweeps.ledger import LEDGER_NAME, read_ledger
from tests.sweeps.simulated import SimulatedHost, grid, run

Replora = Callable[..., tuple[int, str, str]]

SWEEP = """
name: toy
space:
  optim.lr: {values: [0.001, 0.01, 0.1]}
seeds: [0, 1]
"""


@pytest.fixture
def replora(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Replora:
    """Runs a command line in this process with a simulated host: status, stdout, stderr."""
    monkeypatch.setattr(backend, "_host", lambda slots, threads: SimulatedHost(slots))

    def _replora(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return _replora


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text(SWEEP)
    return path


def test_sweep_prints_one_document_with_every_trial(replora: Replora, file: Path, sweep_folder: Path) -> None:
    status, out, _ = replora("sweep", file, "--in-process", "--dir", sweep_folder, "--json")
    document = json.loads(out)
    assert status == 0
    assert document["sweep_dir"] == str(sweep_folder)
    assert [trial["state"] for trial in document["trials"]] == ["finished"] * 6
    for trial in document["trials"]:
        assert {"fingerprint", "state", "config", "objective"} <= trial.keys()
    assert document["best"]["run"]["optim"]["lr"] == 0.01


def test_a_trial_is_named_by_the_fingerprint_of_its_run(
    replora: Replora, file: Path, sweep_folder: Path
) -> None:
    _, out, _ = replora("sweep", file, "--in-process", "--dir", sweep_folder, "--json")
    trial = json.loads(out)["trials"][3]
    path = file.with_name("run.yaml")
    path.write_text(yaml.safe_dump(trial["config"]))
    assert fingerprint(load_run(path)) == trial["fingerprint"]


def test_resume_of_a_finished_sweep_gives_the_same_answer(
    replora: Replora, file: Path, sweep_folder: Path
) -> None:
    _, first, _ = replora("sweep", file, "--in-process", "--dir", sweep_folder, "--json")
    status, again, _ = replora("resume", sweep_folder, "--json")
    assert status == 0
    assert json.loads(again) == json.loads(first)


def test_overrides_are_laid_over_the_file(replora: Replora, file: Path) -> None:
    _, out, _ = replora(
        "sweep", file, "--dry-run", "--json", "seeds=[5]", "backend=in-process", "resources.slots=2"
    )
    document = json.loads(out)
    assert [trial["seed"] for trial in document["trials"]] == [5, 5, 5]
    assert document["plan"]["backend"] == "in-process"
    assert document["plan"]["slots"] == 2


def test_a_dry_run_names_the_trials_that_the_sweep_then_has(
    replora: Replora, file: Path, sweep_folder: Path
) -> None:
    _, planned, _ = replora("sweep", file, "--dry-run", "--json")
    _, done, _ = replora("sweep", file, "--in-process", "--dir", sweep_folder, "--json")
    names = [[trial["fingerprint"] for trial in json.loads(text)["trials"]] for text in (planned, done)]
    assert names[0] == names[1]


def test_a_dry_run_writes_nothing(replora: Replora, file: Path, tmp_path: Path) -> None:
    status, out, _ = replora("sweep", file, "--dry-run", "--dir", tmp_path / "new")
    assert status == 0
    assert "6 trials of 200 steps at most" in out
    assert not (tmp_path / "new").exists()


def test_a_dry_run_of_a_random_search_names_its_draws(replora: Replora, file: Path) -> None:
    _, out, _ = replora("sweep", file, "--dry-run", "--json", "search.name=random", "search.trials=9")
    assert 0 < len(json.loads(out)["trials"]) <= 6  # nine draws of three points, with two seeds each


def test_a_dry_run_of_optuna_counts_trials_without_naming_them(replora: Replora) -> None:
    _, out, _ = replora("sweep", "digits-optuna", "--dry-run", "--json")
    document = json.loads(out)
    assert document["trials"] == []
    assert document["trials_planned"] == 40 + 3 * 5


def test_a_dry_run_says_which_trials_cannot_share_a_pack(replora: Replora) -> None:
    _, out, _ = replora("sweep", "digits-methods", "--dry-run", "--json")
    names = ("lora", "replora", "adapter", "prefix")
    assert json.loads(out)["plan"]["packs"] == [
        {"trials": 8, "point": {"method.name": name}} for name in names
    ]
    _, text, _ = replora("sweep", "digits-methods", "--dry-run")
    assert "trials of 4 kinds, which cannot share one" in text
    assert "8 x method.name=prefix" in text
    _, one, _ = replora("sweep", "smoke", "--dry-run")
    assert "cannot share" not in one


def test_a_dry_run_imports_neither_torch_nor_ray() -> None:
    code = (
        "import sys; from replora.cli import main; main(['sweep', 'digits-grid', '--dry-run']);"
        "heavy = {'torch', 'ray', 'optuna', 'mlflow', 'scipy'} & set(sys.modules);"
        "print(sorted(heavy), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "50 trials" in done.stdout


def test_the_papers_grid_has_25_points_and_confirms_five() -> None:
    from replora.load import load
    from sweeps.commands import find_space
    from sweeps.config import SweepConfig
    from sweeps.resources import trials_planned

    assert trials_planned(load(SweepConfig, find_space("digits-grid"))) == 25 + 5 * 5


def test_ls_lists_the_sweeps_of_the_package(replora: Replora) -> None:
    _, out, _ = replora("ls", "spaces", "--json")
    assert [row["name"] for row in json.loads(out)] == [
        "digits-front",
        "digits-grid",
        "digits-methods",
        "digits-optuna",
        "digits-pbt",
        "smoke",
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sweep", "smok"], "Did you mean smoke?"),
        (["sweep", "smoke", "search.trials=3"], "search.trials must be null for a grid"),
        (["sweep", "smoke", "space.optim.lr.values=[-1.0]"], "optim.lr must be greater than 0"),
        (["sweep", "vit-digits-digits-lora"], "replora train vit-digits-digits-lora"),
        (["sweep"], "arguments are required: SWEEP.yaml."),
        (["sweep", "smoke", "objective=accuracy"], "For example {metric: accuracy}."),
        (["resume", "nowhere"], "not a sweep's folder, there is no such folder"),
        (["resume", __file__], "not a sweep's folder"),
        (["best", "nowhere"], "not a sweep's folder"),
        (["sync", "nowhere"], "not a sweep's folder"),
    ],
)
def test_a_mistake_is_told_with_status_2(replora: Replora, arguments: list[str], words: str) -> None:
    status, out, err = replora(*arguments)
    assert status == 2
    assert words in err
    assert out == ""
    assert "Traceback" not in err


@pytest.mark.parametrize("verb", ["resume", "best", "sync", "export-study"])
def test_a_ledger_without_a_whole_line_is_told(replora: Replora, tmp_path: Path, verb: str) -> None:
    (tmp_path / "ledger.jsonl").write_text('{"seq": 0, "event": "swe')
    status, _, err = replora(verb, tmp_path)
    assert status == 2
    assert "no line was completed" in err


def test_a_run_given_as_a_sweep_is_told_its_verb(replora: Replora, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("method: lora\n")
    status, _, err = replora("sweep", tmp_path / "run.yaml")
    assert status == 2
    assert f"Use `replora train {tmp_path / 'run.yaml'}`" in err


def test_a_folder_of_another_sweep_ends_with_status_2(
    replora: Replora, file: Path, sweep_folder: Path
) -> None:
    replora("sweep", file, "--in-process", "--dir", sweep_folder)
    status, _, err = replora("sweep", file, "--in-process", "--dir", sweep_folder, "seeds=[3]")
    assert status == 2
    assert "belongs to another sweep (toy)" in err


def test_a_sweep_whose_trials_all_fail_ends_with_status_1(
    replora: Replora, file: Path, sweep_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = lambda slots, threads: SimulatedHost(slots, lambda config, step: float("inf"))  # noqa: E731
    monkeypatch.setattr(backend, "_host", broken)
    status, out, err = replora("sweep", file, "--in-process", "--dir", sweep_folder, "--json")
    document = json.loads(out)
    assert status == 1
    assert document["best"] is None
    assert {trial["state"] for trial in document["trials"]} == {"failed"}
    assert "Traceback" not in err


def test_a_missing_tracking_server_ends_with_status_3(replora: Replora, file: Path, tmp_path: Path) -> None:
    status, _, _ = replora(
        "sweep", file, "--in-process", "--dir", tmp_path / "new", "tracking.uri=http://127.0.0.1:9"
    )
    assert status == 3


# --- best -------------------------------------------------------------------------------------------


def made(folder: Path, **changes: Any) -> Path:
    run(folder, grid(**changes))
    return folder


def test_best_writes_the_answer_into_its_sweep(replora: Replora, tmp_path: Path) -> None:
    folder = made(tmp_path / "one")
    status, out, _ = replora("best", folder, "--json")
    assert status == 0
    assert yaml.safe_load((folder / "best.yaml").read_text()) == json.loads(out)


def test_best_of_several_sweeps_goes_where_it_is_told(replora: Replora, tmp_path: Path) -> None:
    one = made(tmp_path / "one", name="one", space={"optim.lr": {"values": (0.1,)}})
    two = made(tmp_path / "two", name="two", space={"optim.lr": {"values": (0.01,)}})
    out_file = tmp_path / "overall.yaml"
    status, out, _ = replora("best", one, two, "--out", out_file, "--json")
    document = json.loads(out)
    assert status == 0
    assert document["provenance"]["name"] == "two"
    assert len(document["provenance"]["ledgers"]) == 2
    assert load_run(out_file).optim.lr == 0.01
    assert not (one / "best.yaml").exists()


def test_best_of_sweeps_that_cannot_be_compared_ends_with_status_2(replora: Replora, tmp_path: Path) -> None:
    one = made(tmp_path / "one", name="one")
    two = made(tmp_path / "two", name="two", objective={"metric": "val_loss"})
    status, _, err = replora("best", one, two)
    assert status == 2
    assert "metric: one has accuracy, two has val_loss" in err


def test_best_of_a_sweep_without_a_finished_trial_ends_with_status_1(
    replora: Replora, tmp_path: Path
) -> None:
    run(tmp_path, grid(), SimulatedHost(2, lambda config, step: float("nan")))
    status, _, err = replora("best", tmp_path)
    assert status == 1
    assert "was trained to its end" in err


def test_best_is_read_while_a_sweep_runs(replora: Replora, tmp_path: Path) -> None:
    made(tmp_path)
    lines = (tmp_path / LEDGER_NAME).read_bytes().splitlines(keepends=True)
    first = next(index for index, line in enumerate(lines) if b'"event":"finished"' in line)
    (tmp_path / LEDGER_NAME).write_bytes(b"".join(lines[: first + 1]))
    status, out, _ = replora("best", tmp_path, "--json")
    assert status == 0
    assert json.loads(out)["compared"] == 1


def test_sync_replays_a_sweep_into_mlflow(replora: Replora, sweep_folder: Path) -> None:
    made(sweep_folder)
    for trial in read_ledger(sweep_folder).trials.values():
        (sweep_folder / trial.adapter).mkdir(parents=True)
    status, out, _ = replora("sync", sweep_folder, "--json")
    assert status == 0
    assert json.loads(out)["trials"] == 6


def test_sync_ends_with_status_1_where_an_adapter_is_gone(replora: Replora, sweep_folder: Path) -> None:
    made(sweep_folder)
    status, out, _ = replora("sync", sweep_folder)
    assert status == 1
    assert out.count("is missing") == 6
