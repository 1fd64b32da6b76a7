"""Trials lost and finished trials trained again under random SIGKILLs, against `Tuner.restore`.

A sweep of 50 trials (digits, batch 4, RepLoRA) loses its driver, its hosts and its tracking server to 100
SIGKILLs, at random moments after it was seen to train again; after a driver's death `replora resume` goes
on, and the server is started again on the same SQLite file. Beside it plain Ray Tune trains 50 PEFT-LoRA
trials, shorter ones (it trains two at a time and takes long to start again), with a checkpoint as often,
`Tuner.restore` after a driver's death and `max_failures=-1`; its drivers and trial actors are killed after
delays of the same plan. What is said: steps redone from checkpoints on, whether the table equals the
undisturbed run's, and MLflow's points.

Rows (ratio = trials lost + finished trials trained again):
    ours             ratio at most 0; a table that differs, steps redone beyond the newest checkpoint or a
                     point that MLflow lacks or doubles counts as one more
    vs-tune-restore  the same of ours at most 0; `peer` is Tune's, with its own number of kills (said above)
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from benchmarks._common import Row, finish, is_quick, machine, run_cold, say
from benchmarks._peers.tortured import TorturedTune
from benchmarks._torture import Findings, TorturedSweep, findings, plan_kills
from sweeps.ledger import SweepView, read_ledger
from tests.sweeps.tracked import Server
from tests.waiting import free_port

SEED = 4


@dataclass(frozen=True)
class Plan:
    """Sizes of one torture: trials, their steps and kills on each side, and the longest delay of a kill."""

    trials: int
    steps: int
    peer_steps: int
    kills: int
    peer_kills: int
    longest_s: float
    slots: int = 8


FULL = Plan(trials=50, steps=4500, peer_steps=600, kills=100, peer_kills=10, longest_s=2.0)
QUICK = Plan(trials=4, steps=120, peer_steps=120, kills=2, peer_kills=1, longest_s=0.2, slots=2)


def sweep_of(plan: Plan, uri: str | None) -> dict[str, Any]:
    """The sweep as data: learning rates by ranks."""
    ranks = [2, 4, 8, 12, 16][: 5 if plan.trials % 5 == 0 else 2]
    rates = [round(1e-4 * 1.3**number, 7) for number in range(plan.trials // len(ranks))]
    every = 10 if plan.steps < 500 else 50
    train = {"steps": plan.steps, "batch": 4, "eval_every": 5 * every, "checkpoint_every": every}
    return {
        "name": "torture",
        "run": {"backbone": {"weights": "random"}, "method": {"name": "replora"}, "train": train},
        "space": {"optim.lr": {"values": rates}, "method.rank": {"values": ranks}},
        "resources": {"hosts": 2, "slots": plan.slots, "threads": 1},
        "tracking": {"uri": uri},
    }


@contextmanager
def server(folder: Path) -> Iterator[Server]:
    """A local MLflow server on a new SQLite file."""
    running = Server(folder, free_port())
    try:
        running.start()
        yield running
    finally:
        running.kill()


def undisturbed(plan: Plan, folder: Path) -> SweepView:
    """The sweep's view when nothing disturbs it."""
    (folder / "calm.yaml").write_text(yaml.safe_dump(sweep_of(plan, None)))
    run_cold(["-m", "replora", "sweep", "calm.yaml", "--dir", "calm"], 1, folder)
    return read_ledger(folder / "calm")


def torture(plan: Plan, folder: Path, expected: SweepView) -> tuple[Findings, Counter[str]]:
    """What became of the sweep, and who was killed how often."""
    with server(folder) as running:
        file = folder / "tortured.yaml"
        file.write_text(yaml.safe_dump(sweep_of(plan, running.uri)))
        with TorturedSweep(file, folder / "tortured", running) as sweep:
            for kill in plan_kills(SEED, plan.kills, plan.longest_s):
                if not sweep.strike(kill):
                    say(f"the sweep ended before it could be killed {plan.kills} times: give it more steps")
                    break
            sweep.finish(timeout_s=1800)
            return findings(sweep, expected, running.uri), sweep.killed


def tune(plan: Plan, folder: Path) -> dict[str, Any]:
    """The same of plain Ray Tune."""
    runs = sweep_of(replace(plan, steps=plan.peer_steps), None)
    with TorturedTune(runs, folder) as peer:
        for kill in plan_kills(SEED, plan.peer_kills, plan.longest_s):
            peer.strike("driver" if kill.victim == "driver" else "actor", kill.delay_s)
        return peer.finish(timeout_s=1800)


def ours(plan: Plan, folder: Path) -> int:
    """Faults of our side, all of them said aloud."""
    started = time.monotonic()
    expected = undisturbed(plan, folder)
    say(f"undisturbed: {len(expected.trials)} trials in {time.monotonic() - started:.0f} s")
    started = time.monotonic()
    found, killed = torture(plan, folder, expected)
    seconds = time.monotonic() - started
    say(f"ours: {killed.total()} kills ({dict(killed)}) in {seconds:.0f} s: {asdict(found)}")
    more = (not found.same_table) + (found.redone > 0) + (found.wrong_points > 0)
    return found.lost + found.again + more


def main() -> None:
    plan = QUICK if is_quick(__doc__) else FULL
    with tempfile.TemporaryDirectory() as name:
        faults = ours(plan, Path(name))
    with tempfile.TemporaryDirectory() as name:
        peer = tune(plan, Path(name))
    say(f"tune: {json.dumps(peer)}")
    theirs = peer["lost"] + peer["again"]
    rows = [
        Row("ours", faults, None, "trials", faults, 0, machine()),
        Row("vs-tune-restore", faults, theirs, "trials", faults, 0, machine()),
    ]
    finish(rows)


if __name__ == "__main__":
    main()
