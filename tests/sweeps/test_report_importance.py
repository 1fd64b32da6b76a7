"""Parameter importance finds what the objective was made of, and keeps quiet where it cannot know."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from sweeps.ledger import Entry, SweepView
from sweeps.report.importance import importance_figure, importance_of
from sweeps.report.results import Results
from tests.sweeps.made_sweeps import Point, free_sweep, grid_sweep, trial, view_of


def results_of(count: int, objective: Callable[[Point], float], outcome: str = "finished") -> Results:
    """A random search over four keys whose objective is a given function of the point."""
    draw, entries = random.Random(1), [next(iter(grid_sweep()))]
    for number in range(count):
        point: Point = {
            "optim.lr": 10 ** draw.uniform(-4, -2),
            "optim.weight_decay": 10 ** draw.uniform(-5, -2),
            "method.rank": draw.choice([2, 4, 8, 16]),
            "method.activation": draw.choice(["gelu", "relu", "tanh"]),
        }
        entries += _scored(trial(number, point, outcome=outcome), objective(point))
    return Results.of(view_of(iter(entries)))


def _scored(entries: Iterator[Entry], value: float) -> Iterator[Entry]:
    for entry in entries:
        changed = {"objective": value} if entry.event == "finished" else {}
        yield Entry(entry.event, entry.trial, {**entry.fields, **changed})


def test_the_key_that_makes_the_objective_is_the_important_one() -> None:
    found = importance_of(results_of(60, lambda point: 0.5 + 0.02 * point["method.rank"]))
    assert found is not None
    assert found.r2 > 0.9
    shares = {key: mean for key, (mean, _) in found.shares.items()}
    assert max(shares, key=shares.__getitem__) == "method.rank"
    assert all(abs(share) < 0.05 for key, share in shares.items() if key != "method.rank")


def test_a_key_of_words_can_be_important() -> None:
    found = importance_of(results_of(60, lambda point: 0.9 if point["method.activation"] == "relu" else 0.5))
    assert found is not None
    assert max(found.shares, key=lambda key: found.shares[key][0]) == "method.activation"
    assert found.ranks["method.activation"] is None


def test_spearman_gives_the_direction() -> None:
    found = importance_of(results_of(40, lambda point: 0.9 - 50 * point["optim.lr"]))
    assert found is not None
    assert found.ranks["optim.lr"] == pytest.approx(-1.0)


def test_noise_has_no_importance_to_show() -> None:
    draw = random.Random(2)
    figure = importance_figure(results_of(40, lambda point: draw.random()))
    assert figure.drawing is None
    assert "no better than their mean" in figure.caption


@pytest.mark.parametrize(("count", "shown"), [(9, False), (10, True)])
def test_under_ten_finished_trials_there_is_a_sentence_instead(count: int, shown: bool) -> None:
    results = results_of(count, lambda point: 0.02 * point["method.rank"])
    assert (importance_of(results) is not None) == shown
    if not shown:
        assert (
            importance_figure(results).caption
            == "Importance needs 10 finished trials of the search; there are 9."
        )


def test_pruned_trials_do_not_count() -> None:
    assert importance_of(results_of(30, lambda point: 0.5, outcome="pruned")) is None


def test_the_page_states_method_and_caveat() -> None:
    caption = importance_figure(Results.of(_free())).caption
    for words in ("Permutation importance of a random forest", "R² =", "in these ranges", "left out"):
        assert words in caption


def test_importance_is_the_same_every_time() -> None:
    assert importance_of(Results.of(_free())) == importance_of(Results.of(_free()))


def _free() -> SweepView:
    return view_of(free_sweep(60))
