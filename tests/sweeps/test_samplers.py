"""Every way to search, with conditional spaces and after a crash; and what a sampler cannot do is told."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from replora.errors import ConfigError
from sweeps.check import check_sweep
from sweeps.config import SweepConfig
from tests.sweeps.simulated import SimulatedHost, cut_and_compare, run, sweep

CONDITIONAL: dict[str, Any] = {
    "method.name": {"values": ("lora", "replora")},
    "method.hidden": {"log_integers": (8, 64), "when": {"method.name": ("replora",)}},
    "optim.lr": {"log_uniform": (1e-4, 1e-1)},
    "method.rank": {"integers": (2, 16)},
}
LISTED: dict[str, Any] = {
    "method.name": {"values": ("lora", "replora")},
    "method.hidden": {"values": (8, 16), "when": {"method.name": ("replora",)}},
    "optim.lr": {"values": (1e-3, 1e-2)},
}
SEARCHES: dict[str, dict[str, Any]] = {
    "grid": {"search": {}, "space": LISTED},
    "random": {"search": {"name": "random", "trials": 12}},
    **{
        sampler: {"search": {"name": "optuna", "sampler": sampler, "trials": 14}}
        for sampler in ("tpe", "cma-es", "gp", "qmc")
    },
}


def conditional(name: str) -> SweepConfig:
    return sweep(**{"space": CONDITIONAL, "confirm": {}, **SEARCHES[name]})


@pytest.mark.parametrize("name", SEARCHES)
def test_conditional_keys_exist_only_where_their_condition_holds(tmp_path: Path, name: str) -> None:
    config = conditional(name)
    check_sweep(config)
    points = [trial.point for trial in run(tmp_path, config).view.trials.values()]
    assert all(("method.hidden" in point) == (point["method.name"] == "replora") for point in points)
    assert len({point["method.name"] for point in points}) == 2


@pytest.mark.parametrize("name", SEARCHES)
def test_a_conditional_search_cut_at_any_line_asks_the_same(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda handle: None)
    cut_and_compare(tmp_path, conditional(name), every=29 if name == "gp" else 11)


@pytest.mark.parametrize(
    ("sampler", "space", "message"),
    [
        ("cma-es", LISTED, "cma-es needs two keys with an interval and no `when`, but got none"),
        ("cma-es", {"optim.lr": {"log_uniform": (1e-4, 1e-1)}}, "and no `when`, but got optim.lr"),
        ("nsga2", CONDITIONAL, "search.sampler: nsga2 is for several objectives"),
    ],
)
def test_what_a_sampler_cannot_do_is_told(sampler: str, space: dict[str, Any], message: str) -> None:
    search = {"name": "optuna", "sampler": sampler, "trials": 9}
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_sweep(sweep(space=space, search=search))


def test_cma_es_takes_one_objective() -> None:
    search = {"name": "optuna", "sampler": "cma-es", "trials": 9}
    several = [{"metric": "accuracy"}, {"metric": "trainable_parameters"}]
    with pytest.raises(ConfigError, match=re.escape("search.sampler: cma-es takes one objective")):
        check_sweep(sweep(search=search, objective=several, pruner={}))


@pytest.mark.parametrize("sampler", ["tpe", "cma-es", "gp", "qmc"])
def test_every_sampler_lives_with_a_limit_on_parameters(tmp_path: Path, sampler: str) -> None:
    search = {"name": "optuna", "sampler": sampler, "trials": 13, "max_parameters": 20_000}
    space = {"optim.lr": {"log_uniform": (1e-4, 1e-1)}, "method.rank": {"integers": (1, 64)}}
    view = run(tmp_path, sweep(space=space, search=search, confirm={}, pruner={})).view
    assert view.skipped >= 1
    assert len(view.trials) == 13 - view.skipped


def test_qmc_draws_differ_before_the_first_result_and_in_conditional_keys(tmp_path: Path) -> None:
    view = run(tmp_path, conditional("qmc"), SimulatedHost(6)).view
    assert len(view.trials) == 14
    widths = [t.point["method.hidden"] for t in view.trials.values() if "method.hidden" in t.point]
    assert len(set(widths)) > len(widths) // 2
