"""The host with real packs of tiny real trials, and with packs that go wrong on purpose."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from replora.config import BackboneConfig, LoraMethod, OptimConfig, RunConfig, TrainConfig
from replora.errors import PlanError
from replora.methods.folder import load_adapter
from replora.train import ranks
from replora.train.events import Checkpointed, Event, Failed, Finished, Reported
from replora.train.pack import Pack
from sweeps.gang import GangError
from sweeps.host import Host
from tests.sweeps.scripted import ScriptedTask

RUN = RunConfig(
    backbone=BackboneConfig(weights="random"),
    method=LoraMethod(rank=2),
    train=TrainConfig(steps=4, batch=4, eval_every=2, checkpoint_every=2),
)
OTHER_BATCH = RUN.model_copy(update={"train": RUN.train.model_copy(update={"batch": 2})})


def task(folder: Path, name: str, run: RunConfig = RUN, seed: int = 0) -> ScriptedTask:
    return ScriptedTask(name, run.model_copy(update={"seed": seed}), folder / name, 1)


def run_out(host: Host) -> list[Event]:
    events: list[Event] = []
    while host.busy:
        events += host.step()
    return events


def ended(events: list[Event], kind: type[Event]) -> set[str]:
    return {event.trial for event in events if isinstance(event, kind)}


class Breaks:
    """Makes one method of every pack raise, for the packs of one batch size."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, method: str, error: Exception, batch: int) -> None:
        original = getattr(Pack, method)

        def broken(pack: Pack, *arguments: Any, **options: Any) -> Any:
            config = arguments[1] if arguments else pack._occupied[0].config
            if config.train.batch == batch:
                raise error
            return original(pack, *arguments, **options)

        monkeypatch.setattr(Pack, method, broken)


def test_every_trial_reports_checkpoints_and_finishes(tmp_path: Path) -> None:
    host = Host(2, 1)
    for seed in range(2):
        host.admit(task(tmp_path, f"t-{seed}", seed=seed))
    events = run_out(host)
    assert ended(events, Finished) == {"t-0", "t-1"}
    assert [event.step for event in events if isinstance(event, Reported) and event.trial == "t-0"] == [2, 4]
    assert (tmp_path / "t-0" / "adapter").is_dir()


def test_admission_tells_the_hash_of_the_data(tmp_path: Path) -> None:
    data = Host(1, 1).admit(task(tmp_path, "t"))
    assert data is not None
    assert data.startswith("sha256:")


def test_trials_of_one_key_share_a_pack_and_others_step_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[int] = []
    original = Pack.__init__

    def counted(pack: Pack, config: RunConfig, *arguments: Any) -> None:
        built.append(config.train.batch)
        original(pack, config, *arguments)

    monkeypatch.setattr(Pack, "__init__", counted)
    host = Host(3, 1)
    for name, run in (("a", RUN), ("b", OTHER_BATCH), ("c", RUN)):
        host.admit(task(tmp_path, name, run))
    assert built == [4, 2]
    assert ended(run_out(host), Finished) == {"a", "b", "c"}


def test_a_base_is_loaded_once_for_all_packs_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from replora.models import load

    loads: list[str] = []
    original = load.load_backbone

    def counted(config: BackboneConfig, **where: Any) -> Any:
        loads.append(config.name)
        return original(config, **where)

    monkeypatch.setattr(load, "load_backbone", counted)
    host = Host(2, 1)
    for name, run in (("a", RUN), ("b", OTHER_BATCH)):
        host.admit(task(tmp_path, name, run))
    run_out(host)
    host.admit(task(tmp_path, "c"))
    assert loads == ["vit-digits"]


def test_a_base_that_nothing_uses_makes_room_for_another(tmp_path: Path) -> None:
    host = Host(2, 1)
    host.admit(task(tmp_path, "a"))
    run_out(host)
    fp64 = RUN.model_copy(update={"train": RUN.train.model_copy(update={"precision": "fp64"})})
    host.admit(task(tmp_path, "b", fp64))
    assert len(host._bases) == 1


def test_slots_are_bounded_over_all_packs(tmp_path: Path) -> None:
    host = Host(2, 1)
    for name, run in (("a", RUN), ("b", OTHER_BATCH), ("c", RUN)):
        host.admit(task(tmp_path, name, run))
    assert host.free == 0
    [refusal] = [event for event in host.step() if isinstance(event, Failed)]
    assert (refusal.trial, refusal.kind) == ("c", "error")
    assert refusal.reason == "PlanError: all 2 slots of this host are taken by a, b"


def test_a_withdrawn_trial_frees_its_slot_at_once(tmp_path: Path) -> None:
    host = Host(1, 1)
    host.admit(task(tmp_path, "a"))
    host.withdraw("a")
    assert host.free == 1
    host.admit(task(tmp_path, "b"))
    assert {event.trial for event in run_out(host)} == {"b"}


def test_withdrawing_what_already_ended_changes_nothing(tmp_path: Path) -> None:
    host = Host(1, 1)
    host.admit(task(tmp_path, "a"))
    run_out(host)
    host.withdraw("a")
    assert host.free == 1


def test_an_error_in_one_pack_fails_its_trials_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Breaks(monkeypatch, "step", ValueError("scripted"), batch=2)
    host = Host(3, 1)
    for name, run in (("a", RUN), ("b", OTHER_BATCH), ("c", OTHER_BATCH)):
        host.admit(task(tmp_path, name, run))
    events = run_out(host)
    assert ended(events, Finished) == {"a"}
    failures = [event for event in events if isinstance(event, Failed)]
    assert {event.trial for event in failures} == {"b", "c"}
    assert {(event.kind, event.reason) for event in failures} == {("error", "ValueError: scripted")}
    assert host.free == 3


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("scripted"),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["Python", "CUDA", "CPU allocator"],
)
def test_running_out_of_memory_is_told_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    Breaks(monkeypatch, "step", error, batch=2)
    host = Host(1, 1)
    host.admit(task(tmp_path, "a", OTHER_BATCH))
    [failure] = run_out(host)
    assert isinstance(failure, Failed)
    assert failure.kind == "out-of-memory"


@pytest.mark.parametrize(
    ("error", "kind"), [(MemoryError("scripted"), "out-of-memory"), (ValueError("scripted"), "error")]
)
def test_what_a_rank_fails_by_ends_its_gang_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: str
) -> None:
    host = Host(1, 1)
    host.admit(task(tmp_path, "a", OTHER_BATCH))
    Breaks(monkeypatch, "step", error, batch=2)
    monkeypatch.setattr(ranks, "count", lambda: 2)
    monkeypatch.setattr(ranks, "index", lambda: 1)
    with pytest.raises(GangError) as raised:
        host.step()
    [failure] = pickle.loads(pickle.dumps(raised.value)).failures
    assert (failure.trial, failure.kind) == ("a", kind)
    assert failure.reason == f"rank 1 of 2: {type(error).__name__}: scripted"


def test_a_rank_does_not_blame_its_trials_for_one_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host(1, 1)
    host.admit(task(tmp_path, "a", OTHER_BATCH))
    gone = RuntimeError("[/gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:19872")
    Breaks(monkeypatch, "step", gone, batch=2)
    monkeypatch.setattr(ranks, "count", lambda: 2)
    with pytest.raises(RuntimeError, match="closed by peer"):
        host.step()


def test_a_fault_of_a_pack_may_be_any_of_its_trials_and_memory_is_shared_by_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error, beside in ((ValueError("scripted"), 1), (MemoryError("scripted"), 2)):
        with monkeypatch.context() as patch:
            Breaks(patch, "step", error, batch=2)
            host = Host(3, 1)
            for name, run in (("a", RUN), ("b", OTHER_BATCH), ("c", OTHER_BATCH)):
                host.admit(task(tmp_path / str(beside), name, run))
            failures = [event for event in host.step() if isinstance(event, Failed)]
        assert {(event.trial, event.beside) for event in failures} == {("b", beside), ("c", beside)}


def test_memory_that_is_used_up_at_admission_is_shared_with_who_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host(2, 1)
    host.admit(task(tmp_path, "a"))
    Breaks(monkeypatch, "admit", MemoryError("scripted"), batch=2)
    host.admit(task(tmp_path, "b", OTHER_BATCH))
    [failure] = [event for event in host.step() if isinstance(event, Failed)]
    assert (failure.trial, failure.kind, failure.beside) == ("b", "out-of-memory", 1)


def test_a_lowered_micro_batch_gives_the_same_trial(tmp_path: Path) -> None:
    fp64 = RUN.model_copy(update={"train": RUN.train.model_copy(update={"precision": "fp64"})})
    losses: dict[int | None, list[float]] = {}
    for micro_batch in (None, 2, 1):
        host = Host(1, 1)
        host.admit(replace(task(tmp_path / str(micro_batch), "t", fp64), micro_batch=micro_batch))
        events = run_out(host)
        assert ended(events, Finished) == {"t"}
        losses[micro_batch] = [e.metrics["val_loss"] for e in events if isinstance(e, Reported)]
        saved = load_adapter(tmp_path / str(micro_batch) / "t" / "adapter")
        assert saved.config == fp64
    assert losses[2] == pytest.approx(losses[None], rel=1e-12)
    assert losses[1] == pytest.approx(losses[None], rel=1e-12)


def test_a_failure_names_the_last_step_that_was_heard_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host(1, 1)
    host.admit(task(tmp_path, "a"))
    host.step()
    host.step()
    Breaks(monkeypatch, "step", ValueError("scripted"), batch=4)
    [failure] = host.step()
    assert (failure.trial, failure.step) == ("a", 2)


def test_a_trial_that_cannot_be_admitted_fails_and_its_neighbour_runs_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Breaks(monkeypatch, "admit", OSError("scripted"), batch=2)
    host = Host(2, 1)
    assert host.admit(task(tmp_path, "a")) is not None
    assert host.admit(task(tmp_path, "b", OTHER_BATCH)) is None
    events = run_out(host)
    assert ended(events, Finished) == {"a"}
    [failure] = [event for event in events if isinstance(event, Failed)]
    assert (failure.trial, failure.reason) == ("b", "OSError: scripted")


def test_checkpoint_writes_the_state_of_every_running_trial(tmp_path: Path) -> None:
    host = Host(2, 1)
    for name, run in (("a", RUN), ("b", OTHER_BATCH)):
        host.admit(task(tmp_path, name, run))
    host.step()
    written = host.checkpoint()
    assert {(event.trial, event.step) for event in written} == {("a", 1), ("b", 1)}
    assert all(isinstance(event, Checkpointed) and Path(event.path).exists() for event in written)


@pytest.mark.parametrize(("recorded", "told"), [(0, [2, 4]), (2, [4]), (4, [])])
def test_another_host_goes_on_from_the_checkpoint_and_tells_the_reports_that_nobody_recorded(
    tmp_path: Path, recorded: int, told: list[int]
) -> None:
    run = RUN.model_copy(update={"train": RUN.train.model_copy(update={"steps": 6})})
    first = Host(1, 1)
    first.admit(task(tmp_path, "t", run))
    before = [event for _ in range(4) for event in first.step() if isinstance(event, Reported)]
    host = Host(1, 1)
    host.admit(replace(task(tmp_path, "t", run), recorded=recorded))
    after = [event for event in run_out(host) if isinstance(event, Reported)]
    assert after[:-1] == [event for event in before if event.step in told]
    assert after[-1].step == 6


def test_the_threads_are_those_that_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    Host(1, 2)
    assert torch.get_num_threads() == 2
    assert os.environ["OMP_NUM_THREADS"] == "2"


@pytest.mark.parametrize(("slots", "threads"), [(0, 1), (1, 0)])
def test_a_host_without_slots_or_threads_is_refused(slots: int, threads: int) -> None:
    with pytest.raises(PlanError, match=f"but got {slots} and {threads}"):
        Host(slots, threads)


def test_the_learning_rate_belongs_to_the_slot(tmp_path: Path) -> None:
    host = Host(2, 1)
    for name, lr in (("a", 1e-3), ("b", 1e-4)):
        run = RUN.model_copy(update={"optim": OptimConfig(lr=lr, schedule="constant")})
        host.admit(task(tmp_path, name, run))
    reports = [event for event in run_out(host) if isinstance(event, Reported)]
    assert {(event.trial, event.metrics["lr"]) for event in reports} == {("a", 1e-3), ("b", 1e-4)}
