"""Population-based training: copies are runs of their own, decisions wait for all, crashes change nothing."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from replora.config import RunConfig
from replora.errors import ConfigError
from replora.fingerprint import fingerprint
from replora.train.events import Checkpointed, Event, Failed
from sweeps.best import select
from sweeps.check import check_sweep
from sweeps.config import SweepConfig
from sweeps.director import TrialTask
from sweeps.ledger import SweepView, TrialView, read_lines
from tests.sweeps.simulated import EVERY, SimulatedHost, cut_and_compare, outcomes, run, sweep


def pbt(**changes: Any) -> SweepConfig:
    """Six members that decide after 50, 100 and 150 of 200 steps."""
    settings: dict[str, Any] = {
        "run": {"train": {"checkpoint_every": 50}},
        "space": {
            "optim.lr": {"log_uniform": (1e-4, 1e-1)},
            "optim.weight_decay": {"values": (1e-4, 1e-3, 1e-2)},
            "method.rank": {"integers": (2, 4)},
        },
        "search": {"name": "pbt", "trials": 6, "population": {"every": 50, "replace": 0.34}},
        "pruner": {},
        "confirm": {},
    }
    return sweep(**{**settings, **changes})


class LearningHost(SimulatedHost):
    """Its trials' only weight grows by what their learning rate is worth; checkpoints are files with it."""

    def __init__(self, slots: int, saved: Mapping[str, int] | None = None, **options: Any) -> None:
        super().__init__(slots, saved=saved, **options)
        self.weights: dict[str, float] = {}
        self.starts: dict[tuple[str, int], float] = {}

    def admit(self, task: TrialTask) -> str | None:
        step, weight = self._newest(task)
        self._saved[task.fingerprint] = step
        self.weights[task.fingerprint] = self.starts[task.fingerprint, step] = weight
        return super().admit(task)

    def _newest(self, task: TrialTask) -> tuple[int, float]:
        for path in sorted((task.folder / "checkpoints").glob("step-*"), reverse=True):
            content = path.read_bytes()
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
            counters = json.loads(header["__metadata__"]["replora"])
            assert counters["fingerprint"] == task.fingerprint
            return counters["step"], counters["weight"]
        return 0, 0.0

    def _advance(self, trial: str, task: TrialTask, step: int) -> list[Event]:
        self.weights[trial] += gain(task.config, step - EVERY)
        self._score = lambda config, at: self.weights[trial]
        events = super()._advance(trial, task, step)
        for event in events:
            if isinstance(event, Checkpointed):
                self._write(task, step)
        return events

    def _write(self, task: TrialTask, step: int) -> None:
        counters = {"fingerprint": task.fingerprint, "step": step, "weight": self.weights[task.fingerprint]}
        header = json.dumps({"__metadata__": {"replora": json.dumps(counters)}}).encode()
        folder = task.folder / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"step-{step:08d}.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
        for old in sorted(folder.glob("step-*"), reverse=True)[2:]:
            old.unlink()


def gain(config: RunConfig, step: int) -> float:
    """More the nearer the rate in force is to 0.01."""
    begun = [phase.lr for phase in config.optim.phases if phase.from_step <= step]
    lr = begun[-1] if begun else config.optim.lr
    return 0.2 - 0.05 * abs(math.log10(lr) + 2)


def replayed(config: RunConfig) -> float:
    return sum(gain(config, step) for step in range(0, config.train.steps, EVERY))


def copies(view: SweepView) -> list[TrialView]:
    return [trial for trial in view.trials.values() if trial.parent]


def test_the_worst_are_replaced_by_copies_of_the_best_with_other_rates(tmp_path: Path) -> None:
    view = run(tmp_path, pbt(), LearningHost(6)).view
    assert len(copies(view)) == 6  # two of six at each of three decisions
    first = [trial for trial in copies(view) if trial.parent_step == 50]
    at_50 = {t.fingerprint: dict(t.reports)[50]["accuracy"] for t in view.trials.values() if not t.parent}
    ranking = sorted(at_50, key=lambda name: -at_50[name])
    assert {trial.parent for trial in first} <= set(ranking[:2])
    assert [view.trials[name].state for name in ranking[-2:]] == ["pruned", "pruned"]
    assert all("replaced after 50 steps by a copy of trial" in view.trials[n].reason for n in ranking[-2:])
    for trial in copies(view):
        parent = view.trials[trial.parent]
        assert (trial.point["optim.lr"], trial.point["optim.weight_decay"]) != (
            parent.point["optim.lr"],
            parent.point["optim.weight_decay"],
        )
        assert trial.point["method.rank"] == parent.point["method.rank"]


def test_a_copy_begins_with_its_parents_checkpoint(tmp_path: Path) -> None:
    host = LearningHost(6)
    view = run(tmp_path, pbt(), host).view
    for trial in copies(view):
        parent = dict(view.trials[trial.parent].reports)[trial.parent_step]["accuracy"]
        assert host.starts[trial.fingerprint, trial.parent_step] == parent


def test_the_best_runs_configuration_alone_gives_its_result(tmp_path: Path) -> None:
    best = select(run(tmp_path, pbt(), LearningHost(6)).view).best
    assert best is not None
    config = RunConfig.model_validate({**best.group.config, "seed": 0})
    assert config.optim.phases
    assert fingerprint(config) == best.trials[0].fingerprint
    assert best.mean == pytest.approx(replayed(config), abs=1e-12)


def test_rates_stay_within_the_space(tmp_path: Path) -> None:
    search = {"name": "pbt", "trials": 6, "population": {"every": 50, "factors": (0.01, 100.0)}}
    for trial in copies(run(tmp_path, pbt(search=search), LearningHost(6)).view):
        assert 1e-4 <= float(trial.point["optim.lr"]) <= 1e-1
        assert trial.point["optim.weight_decay"] in (1e-4, 1e-3, 1e-2)


@pytest.mark.parametrize("slots", [1, 2, 6])
def test_the_outcome_does_not_depend_on_how_many_train_at_once(tmp_path: Path, slots: int) -> None:
    alone = outcomes(run(tmp_path / "one", pbt(), LearningHost(3)).view)
    assert outcomes(run(tmp_path / "other", pbt(), LearningHost(slots)).view) == alone


def test_a_member_that_fails_is_replaced_at_the_next_decision(tmp_path: Path) -> None:
    host = LearningHost(6, faults={6: Failed("", 0, "diverged", "nan")})
    view = run(tmp_path, pbt(), host).view
    assert sum(trial.state == "failed" for trial in view.trials.values()) == 1
    assert sum(trial.parent_step == 50 for trial in copies(view)) == 3
    assert sum(trial.state == "finished" for trial in view.trials.values()) == 6


def test_a_population_cut_at_any_line_ends_as_if_it_had_never_been_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda handle: None)
    config = pbt(confirm={"top": 1, "seeds": (1, 2)})
    view = cut_and_compare(tmp_path, config, lambda saved: LearningHost(2, saved=saved))
    assert len(copies(view)) == 6


def test_a_copy_whose_parents_checkpoint_is_gone_trains_from_its_start_to_the_same_result(
    tmp_path: Path,
) -> None:
    class Forgetful(LearningHost):
        def _write(self, task: TrialTask, step: int) -> None:
            pass

    assert outcomes(run(tmp_path / "a", pbt(), Forgetful(6)).view) == outcomes(
        run(tmp_path / "b", pbt(), LearningHost(6)).view
    )


def test_members_wait_for_the_whole_population(tmp_path: Path) -> None:
    run(tmp_path, pbt(), LearningHost(2))
    seen = [(line["event"], line.get("step")) for line in read_lines(tmp_path)]
    first_of_second = seen.index(("reported", 100))
    assert sum(event == ("reported", 50) for event in seen[:first_of_second]) == 6


def test_the_confirmation_trains_the_schedule_of_the_best(tmp_path: Path) -> None:
    view = run(tmp_path, pbt(confirm={"top": 1, "seeds": (1, 2)}), LearningHost(6)).view
    best = select(view)
    assert best.stage == "confirm"
    assert best.best is not None
    assert all(trial.config["optim"]["phases"] for trial in best.best.trials)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pruner": {"name": "asha"}}, "pruner.name must be none for search.name: pbt, but got asha"),
        (
            {"space": {"method.rank": {"values": (2, 4)}}},
            "the space has none of optim.lr, optim.weight_decay",
        ),
        (
            {"search": {"name": "pbt", "trials": 4, "population": {"every": 60}}},
            "search.population.every must be a multiple of run.train.eval_every, 50, but got 60",
        ),
        (
            {"search": {"name": "pbt", "trials": 4, "population": {"every": 200}}},
            "search.population.every must be below run.train.steps, 200, but got 200",
        ),
        ({"budget": {"trials": 9}}, "budget cannot be set for population-based training"),
        ({"objective": [{}, {"metric": "ppt"}]}, "search.name: pbt takes one objective"),
    ],
)
def test_what_a_population_cannot_do_is_told(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_sweep(pbt(**changes))
