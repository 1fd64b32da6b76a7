"""Hosts of two ranks over two Ray nodes: scripted trials, a rank that dies, ranks that find no place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from replora.errors import ConfigError, MachineError
from replora.train.events import Failed, Finished, Reported
from sweeps.ray_backend.contract import HostPlan
from sweeps.resources import Layout
from tests.sweeps.scripted import ScriptedDirector, ScriptedTrainer
from tests.waiting import wait_for


@pytest.fixture(scope="module")
def session() -> Iterator[Any]:
    """A cluster of two nodes with one processor each, so that every gang is spread over both."""
    from ray.cluster_utils import Cluster

    from sweeps.ray_backend.session import Session  # it sets what Ray's processes read

    with TemporaryDirectory(prefix="replora-", dir="/tmp") as folder:  # sockets want a short path
        node: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "temp_dir": folder}
        cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
        try:
            cluster.add_node(**node)
            with Session(hosts=2, address=cluster.address) as started:
                yield started
        finally:
            cluster.shutdown()


def sweep(session: Any, folder: Path, *names: str, ranks: int = 2, hosts: int = 1) -> ScriptedDirector:
    from sweeps.ray_backend.drive import drive

    director = ScriptedDirector(folder, names)
    drive(director, session, HostPlan(hosts, 2, 1, folder, ranks=ranks, prompt=True), factory=ScriptedTrainer)
    return director


def wait_until_free(cpus: float) -> None:
    """Ray takes a moment to count what an earlier host has given back."""
    import ray

    wait_for(lambda: ray.available_resources().get("CPU", 0.0) >= cpus, "the place of an earlier host")


def test_a_gang_that_loses_a_rank_goes_on_as_a_fresh_one(session: Any, tmp_path: Path) -> None:
    director = sweep(session, tmp_path, "lame", "t-0", "prune-0")
    assert director.ended(Finished) == {"lame", "t-0"}
    failures = [event for event in director.events if isinstance(event, Failed)]
    assert {event.kind for event in failures} == {"lost"}
    assert director.attempts["lame"] == 2
    events = director.of("lame")
    [loss] = [index for index, event in enumerate(events) if isinstance(event, Failed)]
    after = [event.step for event in events[loss:] if isinstance(event, Reported)]
    assert after == [15, 20], "it was killed at step 12, and step 10 was on disk"


def test_what_one_rank_fails_by_reaches_the_ledger(session: Any, tmp_path: Path) -> None:
    director = sweep(session, tmp_path, "hungry", "t-0")
    assert director.ended(Finished) == {"hungry", "t-0"}
    failures = {event.trial: event for event in director.events if isinstance(event, Failed)}
    assert failures["hungry"] == Failed("hungry", 12, "out-of-memory", "rank 1 of 2: no memory")
    assert failures["t-0"].kind == "lost"


def test_ranks_that_find_no_place_are_an_error_that_says_what_is_free(
    session: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sweeps.ray_backend import gangs

    monkeypatch.setattr(gangs, "_PLACE_S", 0.5)
    wait_until_free(2)
    with pytest.raises(
        MachineError, match=r"3 ranks of a host found no place .* 1 CPU on one node, and 2 CPU"
    ):
        sweep(session, tmp_path, "t-0", ranks=3)


def test_a_gang_without_a_place_does_not_keep_another_from_its_trials(session: Any, tmp_path: Path) -> None:
    wait_until_free(2)
    director = sweep(session, tmp_path, "t-0", "t-1", "t-2", hosts=2)
    assert director.ended(Finished) == {"t-0", "t-1", "t-2"}
    assert len({host for hosts in director.hosts.values() for host in hosts}) == 1


def test_ranks_that_fit_the_cluster_but_no_node_are_refused_before_anything_starts(session: Any) -> None:
    session._hosts, before = 1, session._hosts
    try:
        with pytest.raises(MachineError, match=r"1 hosts of 2 CPUs do not fit .* 2 nodes, which hold 0, 0"):
            session.share(2)
    finally:
        session._hosts = before


def test_more_ranks_than_cpus_are_refused_before_anything_starts(session: Any) -> None:
    session._hosts, before = 6, session._hosts
    try:
        with pytest.raises(MachineError, match=r"6 ranks of 1 CPUs need 6 CPUs, but the cluster has 2"):
            session.share(1, ranks=3)
    finally:
        session._hosts = before


def test_ranks_are_refused_in_process(tmp_path: Path) -> None:
    from sweeps.backend import run

    director: Any = ScriptedDirector(tmp_path, [])
    with pytest.raises(
        ConfigError, match=r"run\.engine\.ranks must be 1 with backend: in-process, but got 2"
    ):
        run(director, tmp_path, Layout(1, 1, 1), ranks=2)
