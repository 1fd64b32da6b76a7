"""The page and the summary of a sweep say what its ledger holds, and nothing in a ledger can break them."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from replora.errors import LedgerError
from sweeps.best import select
from sweeps.ledger import Entry, Ledger, SweepView
from sweeps.report import summary, write_report
from sweeps.report.page import render
from tests.sweeps.made_sweeps import free_sweep, grid_sweep, trial, view_of, write_ledger
from tests.sweeps.pages import Page

EVIL = "<script>alert(1)</script>\"'&"


@pytest.fixture(scope="module")
def grid() -> Page:
    return Page(render(view_of(grid_sweep())))


@pytest.fixture(scope="module")
def free() -> Page:
    return Page(render(view_of(free_sweep(80))))


def page_of(*trials: Iterator[Entry], **changes: object) -> Page:
    first = next(iter(grid_sweep()))
    entries = [Entry("sweep", None, {**first.fields, **changes})]
    return Page(render(view_of(iter([*entries, *(entry for each in trials for entry in each)]))))


def points(count: int) -> Iterator[dict[str, float]]:
    return ({"optim.lr": 1e-4 * (n + 1), "optim.weight_decay": 10.0 ** -(n % 5)} for n in range(count))


def test_header_names_the_sweep_its_state_and_its_versions(grid: Page) -> None:
    for words in ("digits-grid", "done", "5eeb0f5ca1ab1e00", "0123abc", "sha256:d161750", "torch 2.14.1"):
        assert words in grid.text
    assert "75 trials: 68 finished, 3 pruned, 4 failed" in grid.text


def test_sweep_that_is_not_over_says_so() -> None:
    text = page_of(trial(0, {"optim.lr": 1e-3})).text
    assert "not over: still running, or interrupted" in text
    assert "replora train best.yaml" not in text


def test_page_gives_the_mean_over_seeds_and_its_interval(grid: Page) -> None:
    best = select(view_of(grid_sweep())).best
    assert best is not None
    assert best.interval is not None
    assert (
        f"accuracy {best.mean:#.4g} 95% interval {best.interval.low:#.4g} to {best.interval.high:#.4g}"
        in grid.text
    )


def test_page_says_what_is_not_distinguishable(grid: Page) -> None:
    rivals = len(select(view_of(grid_sweep())).rivals)
    assert f"It is not distinguishable from {rivals} of the 21 others" in grid.text


def test_page_without_a_finished_trial_says_so() -> None:
    page = page_of(trial(0, {"optim.lr": 1e-3}, outcome="failed"))
    assert "1 trial: 1 failed" in page.text
    assert "No configuration was trained to its end" in page.text
    assert "1 trial: diverged: train_loss is NaN after step 60" in page.text


def test_page_of_an_empty_sweep_is_whole() -> None:
    page = page_of()
    assert "no trials yet" in page.text
    assert "No trial has reported yet." in page.text


def test_heat_map_has_a_cell_for_each_pair_of_values(grid: Page) -> None:
    assert len(grid.of_class("cell")) == 25
    assert len(grid.of_class("empty")) == 2  # one failed with every seed, one was pruned with every seed


def test_heat_map_marks_values_of_pruned_trials_as_bounds(grid: Page) -> None:
    assert re.search(r"≥ 0\.\d{4}", grid.text)


def test_bound_turns_round_where_lower_is_better() -> None:
    trials = [
        trial(n, point, outcome="pruned" if n == 3 else "finished") for n, point in enumerate(points(5))
    ]
    page = page_of(*trials, direction="minimize")
    assert re.search(r"≤ 0\.\d{4}", page.text)
    assert "lower is better" in page.text


def test_heat_map_rings_the_best_configuration_only(grid: Page) -> None:
    assert len(grid.of_class("ring")) == 1


def test_continuous_search_has_a_dot_for_each_finished_trial(free: Page) -> None:
    finished = sum(t.state == "finished" for t in view_of(free_sweep(80)).trials.values())
    failed = sum(t.state == "failed" for t in view_of(free_sweep(80)).trials.values())
    assert len(free.of_class("dot")) == finished
    assert len(free.of_class("cross")) == failed


def test_few_draws_from_intervals_make_no_heat_map() -> None:
    page = Page(render(view_of(free_sweep(6))))
    assert page.of_class("cell") == []
    assert page.of_class("dot")


def test_one_numeric_key_is_drawn_against_the_objective() -> None:
    page = page_of(*(trial(n, {"optim.lr": 1e-3 * (n + 1)}) for n in range(4)))
    assert "Scatter of accuracy (higher is better) over optim.lr" in str(page.tags)
    assert len(page.of_class("dot")) == 4


def test_every_trial_with_reports_has_a_curve_and_the_best_ones_are_bold(grid: Page) -> None:
    assert len(grid.of_class("curve")) == 75
    assert sum("best" in (each["class"] or "").split() for each in grid.of_class("curve")) == 3


def test_parallel_coordinates_have_a_line_for_each_finished_trial(grid: Page) -> None:
    assert len(grid.of_class("strand")) == 68


def test_table_has_a_row_for_each_trial_the_best_first(grid: Page) -> None:
    view = view_of(grid_sweep())
    best = max((t for t in view.trials.values() if t.state == "finished"), key=lambda t: t.objective or 0)
    table = render(view).partition('id="trials"')[2]
    rows = re.findall(r"<tr><td>(\d+)</td>", table)
    assert len(rows) == 75
    assert int(rows[0]) == best.number


def test_failures_are_grouped_by_their_reason(grid: Page) -> None:
    assert "4 trials: diverged: train_loss is NaN after step 60" in grid.text


def test_page_says_that_pruned_values_are_bounds(grid: Page) -> None:
    assert "its value is read as a lower bound" in grid.text


def test_everything_in_a_ledger_is_escaped() -> None:
    point = {"optim.lr": 1e-3, EVIL: EVIL}
    trials = [trial(n, {**point, "optim.lr": 1e-3 * (n + 1)}, metric=EVIL) for n in range(12)]
    trials.append(trial(20, {**point, EVIL: "other"}, metric=EVIL, outcome="failed", reason=EVIL))
    markup = render(view_of(iter([_named(EVIL), *(entry for each in trials for entry in each)])))
    assert [name for name, _ in Page(markup).tags].count("script") == 1
    assert "<script>alert" not in markup
    assert not any(name.startswith("on") for _, attributes in Page(markup).tags for name in attributes)


def _named(word: str) -> Entry:
    first = next(iter(grid_sweep()))
    return Entry(
        "sweep", None, {**first.fields, "name": word, "metric": word, "git": word, "versions": {word: word}}
    )


def test_page_refers_to_nothing_outside_itself(grid: Page) -> None:
    for name, attributes in grid.tags:
        assert "src" not in attributes
        assert (attributes.get("href") or "data:,") == "data:,", name
    assert "url(#curves-frame)" in render(view_of(grid_sweep()))
    assert not re.search(r"@import|url\((?!#)|https?://", render(view_of(grid_sweep())))


def test_conditional_keys_leave_no_hole() -> None:
    trials = [
        trial(
            n, {"optim.lr": 1e-3, "method.shared": bool(n % 2)} | ({"method.hidden": 8 + n} if n % 2 else {})
        )
        for n in range(12)
    ]
    assert "the trial does not have this key" in page_of(*trials).text


def test_write_report_writes_one_file_and_nothing_else(tmp_path: Path) -> None:
    folder = write_ledger(tmp_path / "sweep", grid_sweep())
    before = {path.name for path in folder.iterdir()}
    assert write_report(folder) == folder / "report.html"
    assert {path.name for path in folder.iterdir()} - before == {"report.html"}


def test_report_of_a_folder_without_a_ledger_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="not a sweep's folder"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_report_is_the_same_from_the_ledger_and_from_what_a_driver_knows(tmp_path: Path) -> None:
    live = SweepView()
    with Ledger.open(tmp_path) as ledger:
        for number, line in enumerate(ledger.append_all(grid_sweep())):
            live.apply(line if number else next(ledger.lines()))  # a driver reads the first line back
    known = write_report(tmp_path, live, select(live)).read_text()
    assert write_report(tmp_path).read_text() == known


def test_importing_the_report_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'ray', 'mlflow', 'optuna', 'sklearn', 'scipy', 'matplotlib', 'pandas'}"
    code = f"import sys, sweeps.report; sys.exit(', '.join({heavy} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- the summary in the terminal ----------------------------------------------------------------------


def summary_of(view: SweepView, folder: Path = Path("runs/digits-grid")) -> str:
    return summary(view, select(view), folder)


def test_summary_names_the_best_its_interval_and_its_rivals() -> None:
    view = view_of(grid_sweep())
    text = summary_of(view)
    best = select(view).best
    assert best is not None
    assert f"accuracy {best.mean:#.4g}, 95% interval" in text
    assert "lr=0.001 weight_decay=0.0001   (trials 36, 37, 38)" in text
    assert "It is not distinguishable from" in text


def test_summary_counts_failed_and_pruned_trials_with_reasons() -> None:
    text = summary_of(view_of(grid_sweep()))
    assert "4 failed: diverged: train_loss is NaN after step 60 (trials 61, 72, 73, 74)" in text
    assert "3 pruned: stopped early, so their values are lower bounds" in text


def test_summary_ends_with_the_next_command() -> None:
    lines = summary_of(view_of(grid_sweep()), Path("my runs/a")).splitlines()
    assert lines[-1] == "next      replora train 'my runs/a/best.yaml'"


def test_summary_of_an_interrupted_sweep_says_how_to_go_on() -> None:
    lines = summary_of(view_of(iter(list(grid_sweep())[:-1]))).splitlines()
    assert lines[-1] == "next      replora resume runs/digits-grid"
    assert not any(line.startswith("best  ") for line in lines)  # best.yaml is written at the end


def test_summary_says_where_everything_is(tmp_path: Path) -> None:
    text = summary_of(view_of(grid_sweep()), tmp_path)
    assert f"report    {tmp_path}/report.html" in text
    assert f"mlflow    sqlite:///{tmp_path}/mlflow.db" in text


def test_summary_without_a_result_offers_no_best_file() -> None:
    view = view_of(iter([*list(grid_sweep())[:1], *trial(0, {"optim.lr": 1.0}, outcome="failed")]))
    view.closed = "failed"
    text = summary_of(view)
    assert "best.yaml" not in text
    assert "no best configuration: No configuration was trained to its end" in text


def test_summary_has_no_control_characters() -> None:
    first = _named("\x1b[31mname")
    view = view_of(iter([first, *trial(0, {"optim.lr": 1.0}, outcome="failed", reason="\x1b[2J\x07boom")]))
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", summary_of(view))
