"""Jobs as text: a Slurm script, a RayJob manifest, argument lists. No secret is ever written."""

from __future__ import annotations

import json
import string
import sys
from importlib import metadata
from pathlib import Path

from cluster.launch.job import Job

__all__ = ["local_command", "ray_command", "rayjob_manifest", "slurm_script"]

TEMPLATES = Path(__file__).parents[1] / "templates"
#: Of the head that a Slurm job starts; REPLORA_RAY_PORT overrides it where several jobs share a node.
PORT = 6379


class _Template(string.Template):
    """Fields are `@{name}`, so that a script's own `$` stays."""

    delimiter = "@"


def slurm_script(job: Job) -> str:
    """What `sbatch` takes; its words are checked by `Job.check`."""
    chosen = [("gpus-per-node", job.gpus or None), ("partition", job.partition), ("account", job.account)]
    options = "".join(f"#SBATCH --{name}={value}\n" for name, value in chosen if value is not None)
    return _rendered(
        "slurm.sh",
        name=job.name,
        nodes=job.nodes,
        cpus=job.cpus,
        gpus=job.gpus,
        options=options,
        time=job.time,
        folder=job.folder,
        config=job.config,
        port=PORT,
        path=_environment(job) / "bin",
        hosts=job.hosts,
        threads=job.threads,
    )


def rayjob_manifest(job: Job) -> str:
    """What `kubectl create` takes; every field is a quoted scalar."""
    resources = {"cpu": str(job.cpus), "memory": f"{job.memory_gib}Gi"}
    if job.gpus:
        resources["nvidia.com/gpu"] = str(job.gpus)
    return _rendered(
        "rayjob.yaml",
        name=json.dumps(job.name),
        namespace=json.dumps(job.namespace),
        entrypoint=json.dumps(" ".join(_drive("python", job))),
        ray_version=json.dumps(metadata.version("ray")),
        image=json.dumps(job.image),
        mount=json.dumps(str(job.mount)),
        claim=json.dumps(job.claim),
        nodes=job.nodes,
        resources=json.dumps(resources),
    )


def ray_command(job: Job) -> list[str]:
    """Submits to a running cluster, whose nodes see the environment and the folders."""
    python = str(_environment(job) / "bin" / "python")
    submit = ["ray", "job", "submit", "--address", job.address, "--submission-id", job.name, "--no-wait"]
    return [*submit, "--", *_drive(python, job)]


def local_command(job: Job) -> list[str]:
    """The sweep on this machine, with a Ray of its own."""
    return [sys.executable, "-m", "replora", "sweep", str(job.config), "--dir", str(job.folder)]


def _drive(python: str, job: Job) -> list[str]:
    place = ["--dir", str(job.folder), "--address", "auto"]
    layout = ["--hosts", str(job.hosts), "--threads", str(job.threads)]
    return [python, "-m", "cluster.launch.drive", str(job.config), *place, *layout]


def _environment(job: Job) -> Path:
    return job.environment or Path(sys.prefix)


def _rendered(template: str, **fields: object) -> str:
    return _Template((TEMPLATES / template).read_text(encoding="utf-8")).substitute(fields)
