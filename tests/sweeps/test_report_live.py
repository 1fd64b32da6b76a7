"""What a person sees while a sweep runs, on a terminal and elsewhere."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator

import pytest

from sweeps.ledger import Entry, SweepView
from sweeps.report import LiveTable
from sweeps.report.progress import Progress
from tests.sweeps.made_sweeps import grid_sweep, trial

CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


class Clock:
    """Time that a test moves by hand, in seconds."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


class Stage:
    """A sweep that a test plays line by line before a live table."""

    def __init__(self, stream: io.StringIO, slots: int = 2, trials: int | None = 4) -> None:
        self.view = SweepView()
        self.clock = Clock()
        self.stream = stream
        self.play(Entry("sweep", None, next(iter(grid_sweep())).fields))
        self.table = LiveTable(self.view, slots, trials, stream=stream, clock=self.clock)

    def play(self, *entries: Entry) -> None:
        for entry in entries:
            self.view.apply({**entry.fields, "event": entry.event, "trial": entry.trial, "time": 0.0})

    def show(self, *entries: Entry, seconds: float = 1.0) -> str:
        """What the table wrote after some lines of the ledger and some time."""
        self.play(*entries)
        before = len(self.stream.getvalue())
        self.clock.now += seconds
        self.table.update()
        return self.stream.getvalue()[before:]


@pytest.fixture
def log() -> Stage:
    return Stage(io.StringIO())


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("LINES", "12")
    monkeypatch.delenv("NO_COLOR", raising=False)
    stage = Stage(Terminal())
    with stage.table:
        yield stage


def run_of(number: int, outcome: str = "finished", reason: str = "") -> list[Entry]:
    return list(trial(number, {"optim.lr": 1e-3 * (number + 1)}, outcome=outcome, reason=reason))


def screen(text: str) -> list[str]:
    """Lines of a terminal's last drawing without its escape sequences."""
    last = text.rsplit("\x1b[2K", 1)[-1]
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\r", "", last).splitlines()


def test_log_says_what_became_of_each_trial(log: Stage) -> None:
    lines = log.show(*run_of(0), *run_of(1, "pruned"), *run_of(2, "failed"))
    assert re.search(r"trial 0 finished: accuracy 0\.\d{4} after 200 steps; lr=0\.001\n", lines)
    assert re.search(r"trial 1 pruned: accuracy 0\.\d{4} at step 100 of 200", lines)
    assert "trial 2 failed at step 60: train_loss is NaN after step 60" in lines
    assert "new best: trial 0" in lines


def test_log_says_each_thing_once(log: Stage) -> None:
    log.show(*run_of(0))
    assert log.show(seconds=5) == ""


def test_log_says_where_the_sweep_is_every_ten_seconds(log: Stage) -> None:
    first = log.show(*run_of(0), seconds=0.5)
    assert "1 of 4 trials over (1 finished, 0 pruned, 0 failed), 0 running in 2 slots" in first
    assert log.show(seconds=9) == ""
    assert "trials over" in log.show(seconds=1.5)


def test_log_says_that_a_trial_is_started_again(log: Stage) -> None:
    again = Entry(
        "failed", "000000000000", {"step": 60, "kind": "lost", "reason": "host gone", "final": False}
    )
    restart = Entry("started", "000000000000", {"host": "host-1", "attempt": 2})
    lines = log.show(*run_of(0, "running"), again, restart)
    assert "trial 0 started again (attempt 2) after: host gone" in lines


def test_log_has_no_control_characters(log: Stage) -> None:
    lines = log.show(*run_of(0, "failed", reason="\x1b[31mboom\r\nnext\x07 line\x9b2J"))
    assert "boom next line" in lines
    assert not CONTROL.search(lines)


def test_log_survives_a_stream_without_unicode() -> None:
    raw = io.BytesIO()
    stage = Stage(io.StringIO())
    stage.table = LiveTable(stage.view, 2, stream=io.TextIOWrapper(raw, "ascii"), clock=stage.clock)
    with stage.table:
        stage.show(*run_of(0, "failed", reason="größer"))
    assert b"gr??er" in raw.getvalue()


def test_dumb_terminal_gets_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert not CONTROL.search(Stage(Terminal()).show(*run_of(0)))


def test_table_shows_progress_slots_and_the_best(terminal: Stage) -> None:
    shown = "\n".join(screen(terminal.show(*run_of(0), *run_of(1, "running"))))
    assert "1 of 4 trials over (1 finished, 0 pruned, 0 failed)" in shown
    assert "1 of 2 slots in use" in shown
    assert re.search(r"best so far: accuracy 0\.\d{4}, trial 0\n  lr=0\.001", shown)
    assert re.search(r"1  100/200 +0\.\d{4}  lr=0\.002", shown)


def test_table_fits_sixty_columns_and_twelve_lines(terminal: Stage) -> None:
    long = {
        "optim.lr": 1e-3,
        "optim.weight_decay": 1e-4,
        "method.rank": 8,
        "method.hidden": 32,
        "method.dropout": 0.1,
    }
    lines = screen(terminal.show(*(entry for n in range(9) for entry in trial(n, long, outcome="running"))))
    assert max(map(len, lines)) <= 60
    assert len(lines) <= 12
    assert re.search(r"and \d more running", "\n".join(lines))


def test_table_without_colour_where_no_color_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    stage = Stage(Terminal())
    with stage.table:
        shown = stage.show(*run_of(0), *run_of(1, "failed"))
    assert not re.search(r"\x1b\[(?:\d+;)*(?:3[0-79]|4[0-79]|38;[25];\d+)(?:;\d+)*m", shown)


def test_escape_sequences_of_a_reason_do_not_reach_the_terminal(terminal: Stage) -> None:
    assert "\x1b]0;owned" not in terminal.show(*run_of(0, "failed", reason="\x1b]0;owned\x07[bold]x[/bold]"))


def test_markup_in_a_reason_is_plain_text(terminal: Stage) -> None:
    assert "[bold]x[/bold]" in terminal.show(*run_of(0, "failed", reason="[bold]x[/bold]"))


def test_table_is_drawn_at_most_four_times_a_second(terminal: Stage) -> None:
    drawn = sum(bool(terminal.show(seconds=0.01)) for _ in range(200))
    assert 1 <= drawn <= 9


def test_the_last_state_is_shown_at_the_end() -> None:
    stage = Stage(io.StringIO())
    with stage.table:
        stage.play(*run_of(0))
    assert "trial 0 finished" in stage.stream.getvalue()


def test_time_left_is_unknown_before_the_first_report(log: Stage) -> None:
    assert "time left unknown" in log.show(*run_of(0)[:2])


def test_time_left_follows_the_steps_that_were_done() -> None:
    view = SweepView()
    stage = Stage(io.StringIO())
    view = stage.view
    progress = Progress(view, 4)
    stage.play(*run_of(0)[:2])
    progress.update(10.0)
    stage.play(*run_of(0)[2:])
    progress.update(30.0)
    # 200 steps in 20 s; three trials of 200 steps are to come.
    assert progress.seconds_left(30.0) == pytest.approx(60.0)


def test_time_left_counts_down_between_reports() -> None:
    stage = Stage(io.StringIO())
    progress = Progress(stage.view, 4)
    stage.play(*run_of(0)[:2])
    progress.update(10.0)
    stage.play(*run_of(0)[2:])
    progress.update(30.0)
    progress.update(35.0)
    assert progress.seconds_left(35.0) == pytest.approx(55.0)


def test_time_left_of_a_sweep_that_stalls_grows() -> None:
    stage = Stage(io.StringIO())
    progress = Progress(stage.view, 2)
    stage.play(*run_of(0)[:2])
    progress.update(0.0)
    stage.play(*run_of(0)[2:])
    progress.update(10.0)
    # 200 steps took 10 s and 200 are left, but for 100 s nothing has come.
    assert progress.seconds_left(110.0) == pytest.approx(110.0)


def test_time_left_counts_on_pruned_trials_being_short() -> None:
    stage = Stage(io.StringIO())
    progress = Progress(stage.view, 4)
    stage.play(*run_of(0, "running"))
    progress.update(0.0)
    stage.play(*run_of(1), *run_of(2, "pruned"), *run_of(0)[7:])
    progress.update(50.0)
    # 200 + 200 + 100 steps in 50 s; the one to come is as long as the mean of these.
    assert progress.seconds_left(50.0) == pytest.approx(500 / 3 / 10)


def test_trials_that_a_killed_process_left_running_hold_no_slot() -> None:
    stage = Stage(io.StringIO())
    stage.play(*run_of(0, "running"))
    progress = Progress(stage.view, 4)
    progress.update(1.0)
    assert progress.running == []
    stage.play(Entry("started", "000000000000", {"host": "host-0", "attempt": 2}))
    progress.update(2.0)
    assert [trial.number for trial in progress.running] == [0]


def test_steps_of_an_earlier_process_do_not_speed_up_the_estimate() -> None:
    stage = Stage(io.StringIO())
    stage.play(*run_of(0))
    progress = Progress(stage.view, 2)
    stage.play(*run_of(1)[:2])
    progress.update(0.0)
    assert progress.seconds_left(10.0) is None


def test_pruned_trial_is_never_the_best_so_far() -> None:
    stage = Stage(io.StringIO())
    progress = Progress(stage.view, None)
    stage.play(*run_of(0, "pruned"))
    progress.update(1.0)
    assert progress.best is None
