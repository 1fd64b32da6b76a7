"""What is launched where, as data that is safe to write into scripts and manifests."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cluster.launch.cloud import Cloud, Word
from cluster.launch.machines import Machines, Wishes, misfits, wishes_of
from replora.errors import ConfigError

__all__ = ["Job", "Place", "job_name"]

Place = Literal["local", "ray", "slurm", "kuberay", "cloud"]

#: Words of scripts and manifests: nothing that a shell, sbatch or YAML would read otherwise.
_PATH = re.compile(r"/[A-Za-z0-9._/+@=,-]*")
#: A label of Kubernetes, with room for what KubeRay appends.
_NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")
_WORD = re.compile(r"[A-Za-z0-9._-]{1,100}")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,254}")
_TIME = re.compile(r"(\d+-)?\d{1,2}(:\d{2}){0,2}")
_LABEL = re.compile(r"[A-Za-z0-9./-]{1,100}=[A-Za-z0-9._-]{1,63}")
_URL = re.compile(r"https?://[A-Za-z0-9.-]+(:\d{1,5})?/?")


@dataclass(frozen=True)
class Job:
    """A sweep on a cluster.

    Attributes:
        name: Of the job.
        config: The sweep's file, on storage that every node sees.
        folder: Of the sweep, likewise.
        nodes: Machines.
        gpus: Of each machine; 0 trains on its cores.
        cpus: Of each machine; None: one for each GPU, and at least two.
        memory_gib: Of each machine (KubeRay: 16 if None; Slurm: its own default if None).
        environment: Folder of the Python environment, on shared storage (Slurm, Ray).
        time: Limit of the allocation, as Slurm writes it.
        partition: Of Slurm.
        account: Of Slurm.
        address: Of the dashboard that takes Ray jobs.
        image: Container image with replora and ray[default] (KubeRay), or a boot image (cloud).
        claim: Persistent volume claim that every pod mounts (KubeRay).
        mount: Where it is mounted (KubeRay, cloud); `config` and `folder` lie under it.
        namespace: Of Kubernetes.
        spot: Label of spot machines, `key=value`, on which the workers run then (KubeRay).
        cloud: Where machines are rented.
    """

    name: str
    config: Path
    folder: Path
    nodes: int = 1
    gpus: int = 0
    cpus: int | None = None
    memory_gib: int | None = None
    environment: Path | None = None
    time: str = "24:00:00"
    partition: str | None = None
    account: str | None = None
    address: str = "http://127.0.0.1:8265"
    image: str | None = None
    claim: str | None = None
    mount: Path = Path("/shared")
    namespace: str = "default"
    spot: str | None = None
    cloud: Cloud = field(default_factory=Cloud)

    @property
    def machines(self) -> Machines:
        """Nodes, and the GPUs and cores of each."""
        return Machines(self.nodes, self.gpus, max(2, self.gpus) if self.cpus is None else self.cpus)

    def check(self, place: Place) -> None:
        """Refuses a job that cannot be written down safely, or that lacks what the place needs.

        Raises:
            ConfigError: With every fault.
        """
        if place == "local":
            return  # an argument list on this machine; `replora sweep` judges it
        faults = [*self._sweep_faults(place), *self._word_faults()]
        if place == "kuberay":
            faults += self._kuberay_faults()
        if place == "cloud":
            faults += self._cloud_faults()
        if faults:
            raise ConfigError("\n".join([f"this sweep cannot be launched on {place}:", *faults]))

    def _sweep_faults(self, place: Place) -> Iterator[str]:
        """The file is a sweep whose hosts the machines hold, as far as it can be seen from here.

        A file that only the cluster sees is judged there, before anything starts (cluster.launch.drive).
        """
        wishes = Wishes()
        if self.config.is_file():
            try:
                wishes = wishes_of(self.config)
            except ConfigError as error:
                yield f"  {error}"
        elif place == "slurm":
            yield f"  {self.config} is not a file. Give the path of a sweep file."
        if min(self.nodes, self.machines.cpus, self.gpus + 1) > 0:
            yield from misfits(self.machines, wishes)

    def _word_faults(self) -> Iterator[str]:
        words: list[Word] = [
            ("name", self.name, _NAME, "1 to 40 of a-z, 0-9 and -, starting with a letter"),
            ("SWEEP.yaml", self.config, _PATH, "an absolute path of A-Z a-z 0-9 . _ / + @ = , -"),
            ("--dir", self.folder, _PATH, "an absolute path of A-Z a-z 0-9 . _ / + @ = , -"),
            ("--env", self.environment, _PATH, "an absolute path of A-Z a-z 0-9 . _ / + @ = , -"),
            ("--mount", self.mount, _PATH, "an absolute path of A-Z a-z 0-9 . _ / + @ = , -"),
            ("--time", self.time, _TIME, "minutes, h:mm:ss or days-hours"),
            ("--partition", self.partition, _WORD, "letters, digits, ., _ and -"),
            ("--account", self.account, _WORD, "letters, digits, ., _ and -"),
            ("--address", self.address, _URL, "http://host:port of the dashboard, without a password"),
            ("--image", self.image, _IMAGE, "an image's name"),
            ("--claim", self.claim, _WORD, "letters, digits, ., _ and -"),
            ("--namespace", self.namespace, _WORD, "letters, digits, ., _ and -"),
            ("--spot", self.spot, _LABEL, "key=value of a label of nodes"),
            *self.cloud.words(),
        ]
        for option, value, pattern, form in words:
            if value is not None and not pattern.fullmatch(str(value)):
                yield f"  {option} must be {form}, but got {str(value)!r}."
        for option, number, least in (
            ("--nodes", self.nodes, 1),
            ("--gpus", self.gpus, 0),
            ("--cpus", self.machines.cpus, 1),
            ("--memory", self.memory_gib or 1, 1),
        ):
            if number < least:
                yield f"  {option} must be at least {least}, but got {number}."

    def _kuberay_faults(self) -> Iterator[str]:
        if self.image is None:
            yield "  --image is needed: a container image with replora and ray[default]."
        if self.claim is None:
            yield "  --claim is needed: a persistent volume claim that many pods can write."
        yield from self._outside()

    def _cloud_faults(self) -> Iterator[str]:
        yield from self.cloud.faults(self.image)
        if self.environment is None:
            yield "  --env is needed: a Python environment with replora and ray[default] on that storage."
        elif not self.environment.is_relative_to(self.mount):
            yield f"  --env must lie under {self.mount}, but got {self.environment}."
        yield from self._outside()

    def _outside(self) -> Iterator[str]:
        for option, path in (("SWEEP.yaml", self.config), ("--dir", self.folder)):
            if not path.is_relative_to(self.mount):
                yield f"  {option} must lie under --mount, {self.mount}, but got {path}."


def job_name(config: Path) -> str:
    """A name for a sweep's file that Slurm, Ray and Kubernetes take."""
    word = re.sub(r"[^a-z0-9]+", "-", config.stem.lower()).strip("-")
    return f"replora-{word}"[:40].rstrip("-")
