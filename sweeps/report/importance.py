"""Which keys of the space the objective depends on, as far as the finished trials can tell."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sweeps.ledger import TrialView
from sweeps.report.axes import Figure, svg
from sweeps.report.html import Html, join, tag, title
from sweeps.report.results import Results, thin
from sweeps.report.scales import is_number
from sweeps.report.words import plain, short_names

__all__ = ["Importance", "importance_figure", "importance_of"]

_HEADING = "Parameter importance"
_LEAST = 10
_MOST = 1500
_FOLDS = 5
_TREES = 100
_SHUFFLES = 10
_ROW, _LEFT, _LENGTH, _RIGHT = 34.0, 140.0, 230.0, 520.0


@dataclass(frozen=True)
class Importance:
    """How much the objective depends on each key.

    Attributes:
        shares: By key: mean and standard deviation over the folds of the loss in R² on held-out
            trials when the key's column is shuffled.
        ranks: By key: Spearman's rank correlation with the objective; None for words.
        r2: Mean R² of the forest on held-out trials; at or below 0 it predicts nothing.
        trials: Trials that it rests on.
    """

    shares: dict[str, tuple[float, float]]
    ranks: dict[str, float | None]
    r2: float
    trials: int


def importance_of(results: Results) -> Importance | None:
    """Permutation importance of a random forest, cross-validated; None with under ten finished trials.

    A forest of 100 trees learns the objective from four fifths of the trials; on the last fifth,
    each key's values are shuffled (ten times) and the loss of R² is taken; five folds. Trials that were
    stopped or failed have no objective of full length and are left out.
    """
    trials = thin([t for t in results.finished if t.stage == "search"], _MOST, keep=0)
    if len(trials) < _LEAST or not results.keys:
        return None
    columns = [
        [_code(results, trials, key, trial.point.get(key)) for trial in trials] for key in results.keys
    ]
    features = np.array(columns, dtype=np.float64).T
    target = np.array([trial.objective for trial in trials], dtype=np.float64)
    losses, r2 = _permuted(features, target)
    shares = {
        key: (float(losses[:, i].mean()), float(losses[:, i].std(ddof=1)))
        for i, key in enumerate(results.keys)
    }
    ranks = {key: _spearman(trials, key, features[:, i], target) for i, key in enumerate(results.keys)}
    return Importance(shares, ranks, r2, len(trials))


def _code(results: Results, trials: Sequence[TrialView], key: str, value: object) -> float:
    """A number for a tree to split on: only the order matters to it, so words get any fixed one."""
    if isinstance(value, int | float) and is_number(value):
        return float(value)
    words = sorted({str(trial.point[key]) for trial in trials if key in trial.point})
    return -1.0 if value is None else float(words.index(str(value)))


def _permuted(features: Any, target: Any) -> tuple[Any, float]:
    """Loss of R² by fold and key, and the mean R² of the folds."""
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.model_selection import KFold

    losses, scores = [], []
    for train, test in KFold(_FOLDS, shuffle=True, random_state=0).split(features):
        forest = RandomForestRegressor(_TREES, min_samples_leaf=2, random_state=0)
        forest.fit(features[train], target[train])
        # One call for all shuffles: a forest's call costs more than its rows.
        rows = np.concatenate([features[test][None], _shuffles(features[test])])
        guesses = forest.predict(rows.reshape(-1, features.shape[1])).reshape(len(rows), -1)
        r2 = 1 - ((guesses - target[test]) ** 2).mean(axis=1) / max(target[test].var(), 1e-30)
        scores.append(r2[0])
        losses.append(r2[0] - r2[1:].reshape(-1, _SHUFFLES).mean(axis=1))
    return np.array(losses), float(np.mean(scores))


def _shuffles(features: Any) -> Any:
    """The features with one column shuffled, `_SHUFFLES` times for each column."""
    draw = np.random.default_rng(0)
    copies = np.repeat(features[None], features.shape[1] * _SHUFFLES, axis=0)
    for index, copy in enumerate(copies):
        copy[:, index // _SHUFFLES] = draw.permutation(copy[:, index // _SHUFFLES])
    return copies


def _spearman(trials: Sequence[TrialView], key: str, column: Any, target: Any) -> float | None:
    from scipy.stats import spearmanr

    values = [trial.point.get(key) for trial in trials]
    held = np.array([is_number(value) for value in values])
    words = any(not is_number(value) for value in values if value is not None)
    if words or held.sum() < _LEAST or len(set(column[held])) < 2 or len(set(target[held])) < 2:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return float(spearmanr(column[held], target[held]).statistic)


def importance_figure(results: Results) -> Figure:
    """Bars of importance, or the sentence that says why there are none."""
    found = importance_of(results)
    count = sum(trial.stage == "search" for trial in results.finished)
    if found is None:
        why = f"Importance needs {_LEAST} finished trials of the search; there are {count}."
        return Figure(_HEADING, None, why if count < _LEAST else "The space varies nothing.")
    if found.r2 <= 0:
        return Figure(_HEADING, None, _no_signal(found))
    return Figure(_HEADING, _bars(found), _caption(found, count))


def _no_signal(found: Importance) -> str:
    return (
        f"A random forest on {found.trials} trials predicts held-out trials no better than their mean does "
        f"(R² = {found.r2:.2f}), so its opinion of importance is not shown."
    )


def _bars(found: Importance) -> Html:
    order = sorted(found.shares, key=lambda key: -found.shares[key][0])
    names = short_names(found.shares)
    top = max(mean + spread for mean, spread in found.shares.values())
    rows = [
        _bar(30 + _ROW * i, _LENGTH / top, plain(names[key], 20), found.shares[key], found.ranks[key])
        for i, key in enumerate(order)
    ]
    heads = join(
        [
            tag("text", "loss of R² when shuffled", x=_LEFT, y=14, class_="tick"),
            tag("text", "Spearman ρ", x=_RIGHT, y=14, class_="tick", text_anchor="end"),
        ]
    )
    height = 34 + _ROW * len(order)
    base = tag("line", x1=_LEFT, x2=_LEFT, y1=24, y2=height - 4, class_="axis")
    return svg(_RIGHT + 10, height, "Bars of parameter importance", heads, *rows, base)


def _bar(y: float, unit: float, name: str, share: tuple[float, float], rank: float | None) -> Html:
    mean, spread = share
    end, middle = _LEFT + max(0.0, mean) * unit, y + 11
    low, high = _LEFT + max(0.0, mean - spread) * unit, _LEFT + max(0.0, mean + spread) * unit
    words = "-" if rank is None else f"{rank:+.2f}"
    return tag(
        "g",
        title(f"{name}: {mean:.3f} ± {spread:.3f} (standard deviation over {_FOLDS} folds)"),
        tag("text", name, x=_LEFT - 10, y=y + 15, class_="label", text_anchor="end"),
        tag("rect", x=_LEFT, y=y, width=max(1.0, end - _LEFT), height=22, rx=3, class_="bar"),
        tag("line", x1=low, x2=high, y1=middle, y2=middle, class_="whisker"),
        tag("text", f"{mean:.2f}".replace("-0.00", "0.00"), x=high + 8, y=y + 15, class_="tick"),
        tag("text", words, x=_RIGHT, y=y + 15, class_="label", text_anchor="end"),
    )


def _caption(found: Importance, count: int) -> str:
    part = f" (an even choice of {count})" if found.trials < count else ""
    return (
        f"Permutation importance of a random forest ({_TREES} trees, {_FOLDS}-fold cross-validation, "
        f"{found.trials} finished trials of the search{part}), which explains R² = {found.r2:.2f} of "
        "held-out trials; whiskers: standard deviation over the folds. It describes these trials in these "
        "ranges: a key matters less where its range is narrow, keys that move together share their "
        "importance, and a searcher that zooms in sees little of what it avoids. Spearman's ρ sees only "
        "steady rises and falls. Stopped and failed trials are left out."
    )
