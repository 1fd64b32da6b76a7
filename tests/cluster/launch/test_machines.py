"""Hosts on machines: how many there are, and what is said where a trial's ranks do not fit one."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.launch.machines import Machines, Wishes, layout, misfits, wishes_of
from replora.errors import ConfigError
from tests.cluster.launch.jobs import job

GPUS, CORES = Machines(2, 8, 64), Machines(1, 0, 4)


@pytest.mark.parametrize(
    ("machines", "wishes", "hosts", "threads"),
    [
        (GPUS, Wishes(), 16, 8),
        (CORES, Wishes(), 4, 1),
        (GPUS, Wishes(ranks=4), 4, 8),
        (GPUS, Wishes(ranks=3), 4, 8),
        (CORES, Wishes(ranks=2), 2, 1),
        (GPUS, Wishes(hosts=3, threads=2), 3, 2),
    ],
)
def test_hosts_take_whole_machines_apart(
    machines: Machines, wishes: Wishes, hosts: int, threads: int
) -> None:
    assert layout(machines, wishes) == (hosts, threads)
    assert not list(misfits(machines, wishes))


@pytest.mark.parametrize(
    ("machines", "wishes", "remedy"),
    [
        (Machines(4, 2, 64), Wishes(ranks=4), "give --gpus 4, or set run.engine.ranks to 2 or less"),
        (Machines(4, 0, 2), Wishes(ranks=4), "give --cpus 4"),
        (GPUS, Wishes(ranks=4, hosts=5), "which hold 4: lower resources.hosts"),
        (CORES, Wishes(hosts=5), "raise --nodes or --cpus"),
        (Machines(1, 8, 4), Wishes(), "give --cpus 8"),
        (GPUS, Wishes(threads=9), "give --cpus 72"),
    ],
)
def test_what_does_not_fit_says_what_would(machines: Machines, wishes: Wishes, remedy: str) -> None:
    (fault,) = misfits(machines, wishes)
    assert remedy in fault


def test_several_hosts_of_one_rank_may_share_a_gpu() -> None:
    assert not list(misfits(Machines(1, 1, 4), Wishes(hosts=2)))


def sweep(folder: Path, run: str) -> Path:
    """A sweep's file with a base run."""
    path = folder / "grid.yaml"
    path.write_text(f"name: grid\nrun: {run}\nspace:\n  optim.lr: {{values: [0.001]}}\n")
    return path


def test_ranks_are_found_behind_extends(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("extends: llama-7b-commonsense-lora\nengine: {ranks: 4, zero: 3}\n")
    assert wishes_of(sweep(tmp_path, "{extends: base.yaml}")) == Wishes(ranks=4)


@pytest.mark.parametrize("place", ["slurm", "ray", "kuberay", "cloud"])
def test_a_job_whose_machines_hold_no_gang_is_refused(place: str, tmp_path: Path) -> None:
    config = sweep(tmp_path, "{engine: {ranks: 16}}")
    with pytest.raises(ConfigError, match="give --gpus 16"):
        job(config=config).check(place)  # type: ignore[arg-type]
