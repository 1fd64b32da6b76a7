"""The command line: verbs, answers, statuses, and what `replora ls` must not import."""

from __future__ import annotations

import argparse
import fcntl
import json
import math
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from replora import cli
from replora.commands.showing import describe
from replora.config import DigitsTask, RunConfig
from replora.errors import MachineError, PlanError, RunFailedError
from replora.fingerprint import fingerprint
from replora.load import load_run
from replora.reading.compose import find_run
from replora.verbs import Answer, Follower, Verb, nearest, table
from tests.waiting import PATIENCE_S

ROOT = Path(__file__).parents[2]
RECIPE = "vit-digits-digits-replora"
Replora = Callable[..., tuple[int, str, str]]


@pytest.fixture
def replora(capsys: pytest.CaptureFixture[str]) -> Replora:
    """Runs a command line in this process: status, stdout, stderr."""

    def _replora(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = cli.main(arguments)
        out, err = capsys.readouterr()
        return status, out, err

    return _replora


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[argparse.Namespace], Answer]], None]:
    """Puts the verb `probe` with the given body in the place of all others."""

    def _verb(run: Callable[[argparse.Namespace], Answer]) -> None:
        probe = Verb("probe", "a verb of the test", lambda parser: None, run, spends=True)
        monkeypatch.setattr(cli, "VERBS", (probe,))
        monkeypatch.setattr(cli, "offers", lambda group: iter(()))

    return _verb


def run_program(code: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *(["-c", code] if code else ["-m", "replora"]), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
        **options,
    )


# --- what it is made of ----------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["ls"], ["show", RECIPE], ["train", RECIPE, "--dry-run"]])
def test_light_commands_import_nothing_heavy(arguments: Sequence[str]) -> None:
    code = (
        "import sys; from replora.cli import main; status = main(sys.argv[1:]); "
        "heavy = {'torch', 'timm', 'ray', 'mlflow', 'optuna', 'transformers', 'peft', 'numpy'}; "
        "heavy &= set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else status)"
    )
    done = run_program(code, *arguments)
    assert done.returncode == 0, done.stderr


def test_module_is_the_program() -> None:
    done = run_program("", "--version")
    assert (done.returncode, done.stdout.split()[0]) == (0, "replora")


def test_reader_that_leaves_ends_the_program_quietly() -> None:
    program = f"{sys.executable} -m replora ls | true"
    done = subprocess.run(
        ["bash", "-c", program], cwd=ROOT, capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def test_ctrl_c_ends_with_130_and_one_line() -> None:
    code = (
        "import sys, time; from replora import cli; from replora.verbs import Answer, Verb\n"
        "def wait(options):\n    print('ready', flush=True)\n    time.sleep(3600)\n"
        "cli.VERBS = (Verb('wait', '', lambda parser: None, wait),)\n"
        "cli.offers = lambda group: iter(())\n"
        "sys.exit(cli.main(['wait']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        os.kill(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, err) == (130, "Interrupted.\n")


# --- arguments -------------------------------------------------------------------------------------


def test_unknown_verb_names_the_nearest(replora: Replora) -> None:
    status, out, err = replora("shwo")
    assert (status, out) == (2, "")
    assert "'shwo' is not a verb.\n  Did you mean show? Verbs: " in err


def test_unknown_option_is_refused_with_the_usage(replora: Replora) -> None:
    status, _, err = replora("train", RECIPE, "--jsn")
    assert status == 2
    assert "unrecognized arguments: --jsn" in err
    assert "usage: replora train" in err


def test_overrides_and_options_mix_in_any_order(replora: Replora) -> None:
    first = replora("show", RECIPE, "seed=1", "--json", "optim.lr=1e-3")
    second = replora("show", "--json", RECIPE, "optim.lr=1e-3", "seed=1")
    assert first == second
    assert json.loads(first[1])["config"]["seed"] == 1


def test_no_verb_shows_all_of_them_and_is_no_success(replora: Replora) -> None:
    status, out, _ = replora()
    assert status == 2
    assert all(f"\n  {name} " in out for name in ("ls", "show", "train", "eval", "export"))


def test_help_of_a_verb_is_a_success(replora: Replora) -> None:
    status, out, _ = replora("train", "--help")
    assert status == 0
    assert "--dry-run" in out
    assert "--json" in out


# --- answers and statuses --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status"),
    [(RunFailedError("all failed"), 1), (PlanError("too big"), 3), (OSError(28, "disk full"), 3)],
)
def test_expected_failure_is_one_message_and_its_status(
    replora: Replora, verb: Callable[..., None], error: Exception, status: int
) -> None:
    def fail(options: argparse.Namespace) -> Answer:
        raise error

    verb(fail)
    found, out, err = replora("probe", "--json")
    assert (found, out) == (status, "")
    assert err.startswith(f"{type(error).__name__}: {error}\n")
    assert "Traceback" not in err


def test_unexpected_failure_keeps_its_traceback(replora: Replora, verb: Callable[..., None]) -> None:
    def fail(options: argparse.Namespace) -> Answer:
        raise ZeroDivisionError

    verb(fail)
    with pytest.raises(ZeroDivisionError):
        replora("probe")


def test_json_answer_stands_alone_on_stdout(
    capfd: pytest.CaptureFixture[str], verb: Callable[..., None]
) -> None:
    def chatter(options: argparse.Namespace) -> Answer:
        sys.stdout.write("from a library\n")
        os.write(1, b"from a process\n")
        return Answer({"loss": math.nan, "values": (1, math.inf)}, "text", status=1)

    verb(chatter)
    assert cli.main(["probe", "--json"]) == 1
    out, err = capfd.readouterr()
    assert json.loads(out) == {"loss": None, "values": [1, None]}
    assert "from a library\n" in err
    assert "from a process\n" in err


def test_answer_without_json_is_its_text(replora: Replora, verb: Callable[..., None]) -> None:
    verb(lambda options: Answer({"dry": options.dry_run}, f"dry {options.dry_run}"))
    assert replora("probe", "--dry-run") == (0, "dry True\n", "")


def test_warning_of_ours_is_one_line(replora: Replora, verb: Callable[..., None]) -> None:
    def warn(options: argparse.Namespace) -> Answer:
        warnings.warn("hidden is small", UserWarning, stacklevel=1)
        return Answer({}, "")

    verb(warn)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert replora("probe") == (0, "", "Warning: hidden is small\n")


def test_two_packages_with_the_same_verb_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    other = Verb("ls", "another", lambda parser: None, lambda options: Answer({}, ""))
    monkeypatch.setattr(cli, "offers", lambda group: iter([("other", (other,))]))
    with pytest.raises(MachineError, match="two packages offer the verb ls; one of them is other"):
        cli.find_verbs()


def test_what_follows_a_verb_does_not_fail_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(options: argparse.Namespace, answer: Answer) -> str:
        raise MachineError(f"no room for {answer.text}")

    probe = Verb("probe", "", lambda parser: None, lambda options: Answer({}, "done"))
    offered = (Follower("probe", lambda options, answer: "and more"), Follower("probe", fail))
    monkeypatch.setattr(cli, "VERBS", (probe,))
    monkeypatch.setattr(cli, "offers", lambda group: iter([("other", offered)]))
    assert cli.main(["probe", "--json"]) == 0
    assert capsys.readouterr() == ("{}\n", "and more\nMachineError: no room for done\n")


# --- ls --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "name"),
    [("methods", "replora"), ("tasks", "image-folder"), ("backbones", "vit-b16"), ("recipes", RECIPE)],
)
def test_ls_lists_a_kind_by_name(replora: Replora, kind: str, name: str) -> None:
    status, out, _ = replora("ls", kind, "--json")
    assert status == 0
    assert name in [row["name"] for row in json.loads(out)]


def test_ls_without_a_kind_lists_all_with_their_kind(replora: Replora) -> None:
    rows = json.loads(replora("ls", "--json")[1])
    assert {"methods", "tasks", "backbones", "recipes"} <= {row["kind"] for row in rows}


def test_ls_of_an_unknown_kind_names_the_nearest(replora: Replora) -> None:
    status, _, err = replora("ls", "recips")
    assert status == 2
    assert "Did you mean recipes?" in err


def test_ls_shows_a_person_what_each_is(replora: Replora) -> None:
    assert "Full fine-tuning: every weight of the backbone" in replora("ls", "methods")[1]


# --- show and train --------------------------------------------------------------------------------


def test_show_gives_counts_and_the_fingerprint(replora: Replora) -> None:
    facts = json.loads(replora("show", "vit-b16-image-folder-replora", "method=lora", "--json")[1])
    assert (facts["trainable_parameters"], facts["base_parameters"]) == (294_912, 85_798_656)
    config = load_run(find_run("vit-b16-image-folder-replora"), ["method=lora"])
    assert facts["fingerprint"] == fingerprint(config)
    assert RunConfig.model_validate_json(json.dumps(facts["config"])) == config


def test_show_prints_a_file_that_loads_again(replora: Replora, tmp_path: Path) -> None:
    text = replora("show", RECIPE, "seed=3")[1].split("\n\n")[0]
    path = tmp_path / "run.yaml"
    path.write_text(text)
    assert load_run(path) == load_run(find_run(RECIPE), ["seed=3"])


def test_show_does_not_guess_sizes_that_only_the_built_model_has(replora: Replora) -> None:
    facts = json.loads(replora("show", RECIPE, "backbone.name=timm/vit_base_patch16_clip_224", "--json")[1])
    assert facts["trainable_parameters"] is None
    assert "known once the backbone is built" in replora("show", RECIPE, "backbone=timm/eva_giant")[1]


def test_head_parameters_are_those_of_the_task() -> None:
    from replora.tasks.load import load_task

    task = load_task(DigitsTask(), precision="fp32", device="cpu")
    assert describe(RunConfig())["head_parameters"] == task.head_width * (64 + 1)


def test_wrong_configuration_is_status_2(replora: Replora) -> None:
    status, out, err = replora("show", RECIPE, "method.rank=0", "--json")
    assert (status, out) == (2, "")
    assert "method.rank must be at least 1, but got 0" in err


def test_misspelt_recipe_names_the_nearest(replora: Replora) -> None:
    status, _, err = replora("show", "vit-digits-digits-repllora")
    assert status == 2
    assert f"Did you mean {RECIPE}?" in err


def test_dry_run_says_what_it_would_train_and_writes_nothing(
    replora: Replora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, _ = replora("train", RECIPE, "--dry-run", "--json")
    plan = json.loads(out)
    assert status == 0
    assert (plan["run_dir"], plan["test"]) == (f"runs/train/{plan['fingerprint']}", False)
    assert list(tmp_path.iterdir()) == []


def test_best_of_a_sweep_is_trained_with_the_final_test(replora: Replora, tmp_path: Path) -> None:
    best = tmp_path / "best-of-smoke.yaml"
    best.write_text("run: {method: lora}\nobjective: {value: 0.9}\nprovenance: {sweep: abc}\n")
    assert json.loads(replora("train", str(best), "--dry-run", "--json")[1])["test"] is True
    assert json.loads(replora("train", str(best), "--no-test", "--dry-run", "--json")[1])["test"] is False


def test_missing_data_are_told_before_weights_are_read(replora: Replora) -> None:
    status, _, err = replora("train", "vit-b16-image-folder-replora", "task.root=nowhere")
    assert (status, "task.root: nowhere is not a folder." in err) == (2, True)


@pytest.mark.parametrize("arguments", [("eval",), ("export", "--as", "merged", "--out", "x")])
def test_folder_that_is_no_run_is_refused(replora: Replora, tmp_path: Path, arguments: Sequence[str]) -> None:
    for folder, why in ((tmp_path / "none", "there is no such folder"), (tmp_path, "it has no adapter yet")):
        status, _, err = replora(arguments[0], str(folder), *arguments[1:])
        assert status == 2
        assert f"{folder} is not a folder of a finished run: {why}." in err


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of two steps, trained through the command line, with its answer in answer.json."""
    folder = tmp_path_factory.mktemp("trained")
    done = run_program(
        "", "train", RECIPE, "train.steps=2", "backbone.weights=random", "--dir", str(folder), "--json"
    )
    assert done.returncode == 0, done.stderr
    (folder / "answer.json").write_text(done.stdout)
    return folder


def test_train_answers_with_folder_metrics_and_seconds(trained: Path) -> None:
    answer = json.loads((trained / "answer.json").read_text())
    assert answer["run_dir"] == str(trained)
    assert 0 <= answer["metrics"]["accuracy"] <= 1
    assert answer["seconds"] > 0


def test_eval_gives_the_validation_metrics_of_the_training(replora: Replora, trained: Path) -> None:
    answer = json.loads((trained / "answer.json").read_text())
    status, out, _ = replora("eval", str(trained), "--json")
    assert status == 0
    assert json.loads(out)["metrics"]["accuracy"] == pytest.approx(answer["metrics"]["accuracy"])


def test_export_writes_the_folder_that_it_names(replora: Replora, trained: Path, tmp_path: Path) -> None:
    out_dir = tmp_path / "plain"
    status, out, _ = replora("export", str(trained), "--as", "peft-lora", "--out", str(out_dir), "--json")
    assert status == 0
    assert json.loads(out) == {"run_dir": str(trained), "form": "peft-lora", "out": str(out_dir)}
    assert (out_dir / "adapter_config.json").is_file()


def test_import_makes_a_run_that_evaluates_like_the_one_it_was_exported_from(
    replora: Replora, trained: Path, tmp_path: Path
) -> None:
    answer = json.loads((trained / "answer.json").read_text())
    peft, back = str(tmp_path / "peft"), str(tmp_path / "back")
    assert replora("export", str(trained), "--as", "peft", "--out", peft)[0] == 0
    status, out, err = replora("import", peft, RECIPE, "backbone.weights=random", "--out", back, "--json")
    assert status == 0, err
    assert json.loads(out) == {"peft_dir": peft, "run_dir": back}
    found = json.loads(replora("eval", back, "--json")[1])["metrics"]
    assert found["accuracy"] == pytest.approx(answer["metrics"]["accuracy"])
    assert replora("import", str(tmp_path / "none"), RECIPE, "--out", str(tmp_path / "other"))[0] == 2


def test_folder_of_another_run_is_refused(replora: Replora, trained: Path) -> None:
    status, _, err = replora("train", RECIPE, "seed=9", "--dir", str(trained))
    assert status == 1
    assert "belongs to the run" in err


def test_a_start_that_failed_leaves_its_folder_to_the_corrected_command(
    replora: Replora, tmp_path: Path
) -> None:
    def train(weights: str) -> tuple[int, str, str]:
        folder = str(tmp_path / "run")
        return replora("train", RECIPE, "train.steps=1", f"backbone.weights={weights}", "--dir", folder)

    status, _, err = train(str(tmp_path / "missing.safetensors"))
    assert status != 0
    assert "missing.safetensors" in err
    assert train("random")[0] == 0


def test_folder_in_which_another_process_trains_is_refused(replora: Replora, tmp_path: Path) -> None:
    with (tmp_path / ".lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        status, _, err = replora("train", RECIPE, "--dir", str(tmp_path))
    assert status == 1
    assert "another process trains in this folder" in err
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_without_its_streams_the_program_opens_no_file_as_one_of_them() -> None:
    """A ledger that is opened as number 2 would get what libraries print to stderr."""
    code = (
        "import sys; from replora.cli import main; status = main(['ls', 'methods']); "
        "sys.exit(status or open('/dev/null').fileno() < 3)"
    )
    closed = ["sh", "-c", 'exec "$0" -c "$1" <&- >&- 2>&-', sys.executable, code]
    assert subprocess.run(closed, cwd=ROOT, check=False, timeout=60).returncode == 0


# --- words -----------------------------------------------------------------------------------------


def test_nearest_is_silent_when_nothing_is_near() -> None:
    assert nearest("zzz", ["lora", "full"]) == ""
    assert nearest("Lorra", ["lora", "full"]) == "Did you mean lora? "


def test_table_aligns_columns_and_leaves_unknown_cells_empty() -> None:
    rows: list[dict[str, object]] = [{"name": "a", "count": 12345}, {"name": "long", "count": None}]
    assert table(rows, ("name", "count")) == "name  count\na     12,345\nlong"
