from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from replora.config import RunConfig
from replora.errors import ConfigError
from replora.load import load_run
from sweeps.best import Selection, select
from sweeps.handover import best_document, write_best
from sweeps.ledger import SweepView, read_ledger
from sweeps.objective import METRICS, PRIMARY, VALIDATION_EXAMPLES
from tests.sweeps.simulated import SimulatedHost, grid, run, sweep

#: Accuracy by learning rate and seed: 0.01 shines in the search only; 0.1 is the truly better one.
TRUTH: dict[float, dict[int, float]] = {
    1e-3: {0: 0.50, 1: 0.51, 2: 0.49, 3: 0.50},
    1e-2: {0: 0.95, 1: 0.80, 2: 0.82, 3: 0.81},
    1e-1: {0: 0.90, 1: 0.90, 2: 0.93, 3: 0.91},
}
THREE = {"optim.lr": {"values": (1e-3, 1e-2, 1e-1)}}
SEEDS = {"top": 2, "seeds": (1, 2, 3)}


def table(values: Mapping[float, Mapping[int, float]]) -> Callable[[RunConfig, int], float]:
    return lambda config, step: values[config.optim.lr][config.seed]


def trained(folder: Path, values: Mapping[float, Mapping[int, float]] = TRUTH, **changes: Any) -> SweepView:
    config = grid(**{"space": THREE, "confirm": SEEDS, **changes})
    return run(folder, config, SimulatedHost(2, table(values))).view


def rates(selection: Selection) -> list[Any]:
    return [item.group.point["optim.lr"] for item in selection.contenders]


def test_only_fresh_seeds_count_once_there_are_some(tmp_path: Path) -> None:
    selection = select(trained(tmp_path))
    assert selection.stage == "confirm"
    assert rates(selection) == [1e-1, 1e-2]  # 0.01 won the search by its luck with seed 0
    assert selection.best is not None
    assert selection.best.values == {1: 0.90, 2: 0.93, 3: 0.91}


def test_a_real_difference_is_told_with_its_interval(tmp_path: Path) -> None:
    second = select(trained(tmp_path)).contenders[1]
    assert second.verdict == "worse"
    assert "paired by seed, Holm-corrected" in second.words
    assert second.gap is not None
    assert second.gap[0] > 0


def test_a_difference_within_the_noise_is_not_distinguishable(tmp_path: Path) -> None:
    noisy = {**TRUTH, 1e-2: {0: 0.95, 1: 0.95, 2: 0.85, 3: 0.90}}
    second = select(trained(tmp_path, noisy)).contenders[1]
    assert second.words.startswith("not distinguishable from the best")
    assert second.gap is not None
    assert second.gap[0] <= 0 <= second.gap[1]


def test_with_one_seed_nothing_is_distinguished(tmp_path: Path) -> None:
    selection = select(trained(tmp_path, confirm={}))
    assert rates(selection) == [1e-2, 1e-1, 1e-3]
    assert [item.words for item in selection.rivals] == ["one seed: not distinguishable by this sweep"] * 2
    assert selection.best is not None
    assert selection.best.interval is not None
    assert selection.best.interval.basis == "Wilson over 248 validation examples, one seed"


def test_seeds_of_the_search_are_compared_where_nothing_was_confirmed(tmp_path: Path) -> None:
    selection = select(trained(tmp_path, confirm={}, seeds=(1, 2, 3)))
    assert rates(selection) == [1e-1, 1e-2, 1e-3]
    assert [item.verdict for item in selection.contenders] == ["best", "worse", "worse"]


def test_a_configuration_with_a_failed_seed_is_no_contender(tmp_path: Path) -> None:
    broken = {**TRUTH, 1e-1: {**TRUTH[1e-1], 2: float("nan")}}
    assert rates(select(trained(tmp_path, broken))) == [1e-2]


def test_smaller_is_better_where_the_objective_says_so(tmp_path: Path) -> None:
    view = trained(tmp_path, objective={"metric": "accuracy", "direction": "minimize"})
    best = select(view).best
    assert best is not None
    assert best.group.point == {"optim.lr": 1e-3}


def test_fewer_parameters_break_a_tie(tmp_path: Path) -> None:
    space = {"method.rank": {"values": (8, 4, 16)}}
    view = run(tmp_path, grid(space=space), SimulatedHost(2, lambda config, step: 0.5)).view
    assert [item.group.point["method.rank"] for item in select(view).contenders] == [4, 8, 16]


def test_nothing_is_best_where_nothing_finished(tmp_path: Path) -> None:
    view = run(tmp_path, grid(), SimulatedHost(2, lambda config, step: float("nan"))).view
    selection = select(view)
    assert selection.best is None
    assert selection.note == "No configuration was trained to its end with every seed."


def test_several_sweeps_have_one_best(tmp_path: Path) -> None:
    better = {rate: {seed: value + 0.05 for seed, value in values.items()} for rate, values in TRUTH.items()}
    views = [trained(tmp_path / "a", name="a"), trained(tmp_path / "b", better, name="b")]
    best = select(views).best
    assert best is not None
    assert (best.sweep, best.group.point) == ("b", {"optim.lr": 1e-1})


def test_sweeps_with_other_objectives_are_not_compared(tmp_path: Path) -> None:
    other = trained(tmp_path / "b", name="b", objective={"metric": "val_loss"})
    with pytest.raises(ConfigError, match=r"metric: simulated has accuracy, b has val_loss"):
        select([trained(tmp_path / "a"), other])


# --- best.yaml --------------------------------------------------------------------------------------


def handed_over(folder: Path) -> dict[str, Any]:
    view = read_ledger(folder)
    path = folder / "best.yaml"
    write_best(path, best_document(select(view), [folder], [view]))
    document: dict[str, Any] = yaml.safe_load(path.read_text())
    return document


def test_a_run_starts_from_best_yaml(tmp_path: Path) -> None:
    trained(tmp_path)
    handed_over(tmp_path)
    run_config = load_run(tmp_path / "best.yaml")
    assert run_config.optim.lr == 1e-1
    assert run_config.seed == 0


def test_best_yaml_says_how_sure_it_is(tmp_path: Path) -> None:
    trained(tmp_path, {**TRUTH, 1e-2: {0: 0.95, 1: 0.95, 2: 0.85, 3: 0.90}})
    document = handed_over(tmp_path)
    objective = document["objective"]
    assert objective["interval"]["low"] < objective["value"] < objective["interval"]["high"]
    assert [rival["point"] for rival in document["not_distinguishable"]] == [{"optim.lr": 1e-2}]


def test_best_yaml_names_the_ledger_lines_that_it_rests_on(tmp_path: Path) -> None:
    view = trained(tmp_path)
    provenance = handed_over(tmp_path)["provenance"]
    ledger = provenance["ledgers"][0]
    lines = (tmp_path / "ledger.jsonl").read_bytes().splitlines(keepends=True)[: ledger["lines"]]
    assert hashlib.sha256(b"".join(lines)).hexdigest() == ledger["sha256"]
    assert provenance["sweep"] == view.fingerprint
    assert provenance["data"] == "sha256:data"
    assert len(provenance["trials"]) == 3


def test_a_long_list_of_rivals_is_cut_but_counted(tmp_path: Path) -> None:
    space = {"optim.lr": {"log_uniform": (1e-3, 1e-1)}}
    config = sweep(space=space, search={"name": "random", "trials": 70}, pruner={}, confirm={})
    run(tmp_path, config, SimulatedHost(4))
    document = handed_over(tmp_path)
    assert len(document["not_distinguishable"]) == 50
    assert document["not_distinguishable_count"] == 69


# --- what is known of tasks without torch -----------------------------------------------------------


def test_the_tables_of_tasks_are_right() -> None:
    from replora.config import DigitsTask
    from replora.tasks import TASKS
    from replora.tasks.load import load_task
    from replora.tasks.text_to_text import TextToText
    from replora.tasks.video_folder import VideoClassification

    task = load_task(DigitsTask(), precision="fp32", device="cpu")
    assert PRIMARY["digits"] == (task.metric, task.direction)
    assert VALIDATION_EXAMPLES["digits"] == len(task.split("val"))
    assert set(PRIMARY) == set(METRICS) == set(TASKS)
    assert PRIMARY["video-folder"] == (VideoClassification.metric, VideoClassification.direction)
    assert PRIMARY["text-to-text"] == (TextToText.metric, TextToText.direction)
