"""Jobs as text: a Slurm script, a RayJob manifest, argument lists. No secret is ever written."""

from __future__ import annotations

import json
import shlex
import string
import sys
from importlib import metadata
from pathlib import Path

from cluster.launch.job import Job
from replora.train import heap

__all__ = ["cloud_drive", "cloud_file", "local_command", "ray_command", "rayjob_manifest", "slurm_script"]

TEMPLATES = Path(__file__).parents[1] / "templates"
#: Of the head that a Slurm job starts; REPLORA_RAY_PORT overrides it where several jobs share a node.
PORT = 6379


class _Template(string.Template):
    """Fields are `@{name}`, so that a script's own `$` stays."""

    delimiter = "@"


def slurm_script(job: Job) -> str:
    """What `sbatch` takes; its words are checked by `Job.check`."""
    memory = None if job.memory_gib is None else f"{job.memory_gib}G"
    chosen = [("gpus-per-node", job.gpus or None), ("mem", memory)]
    chosen += [("partition", job.partition), ("account", job.account)]
    options = "".join(f"#SBATCH --{name}={value}\n" for name, value in chosen if value is not None)
    return _rendered(
        "slurm.sh",
        name=job.name,
        nodes=job.nodes,
        cpus=job.machines.cpus,
        gpus=job.gpus,
        options=options,
        time=job.time,
        folder=job.folder,
        config=job.config,
        port=PORT,
        path=_environment(job) / "bin",
    )


def rayjob_manifest(job: Job) -> str:
    """What `kubectl create` takes; every field is a quoted scalar."""
    resources = {"cpu": str(job.machines.cpus), "memory": f"{job.memory_gib or 16}Gi"}
    if job.gpus:
        resources["nvidia.com/gpu"] = str(job.gpus)
    return _rendered(
        "rayjob.yaml",
        name=json.dumps(f"{job.name}-"),
        namespace=json.dumps(job.namespace),
        entrypoint=json.dumps(" ".join(_drive("python", job))),
        ray_version=json.dumps(metadata.version("ray")),
        image=json.dumps(job.image),
        mount=json.dumps(str(job.mount)),
        claim=json.dumps(job.claim),
        nodes=job.nodes,
        resources=json.dumps(resources),
        placing=_placing(job),
    )


def _placing(job: Job) -> str:
    """Where workers may run: on machines with GPUs, on spot machines."""
    key, _, value = (job.spot or "").partition("=")
    tolerations = (
        [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}] if job.gpus else []
    )
    tolerations += [{"key": key, "operator": "Exists"}] if key else []
    lines = [f"nodeSelector: {json.dumps({key: value})}"] if key else []
    lines += [f"tolerations: {json.dumps(tolerations)}"] if tolerations else []
    return "".join(f"            {line}\n" for line in lines)


def cloud_file(job: Job) -> str:
    """What `ray up` takes: a head on demand, spot workers, shared storage, your own token."""
    python = _environment(job) / "bin" / "python"
    variables = (
        "RAY_AUTH_MODE=token OMP_NUM_THREADS=1 RAY_USAGE_STATS_ENABLED=0 MLFLOW_DISABLE_TELEMETRY=true "
        f"RAY_LD_PRELOAD_ON_WORKERS=1 MALLOC_CONF={heap.CONF}"
    )
    return _rendered(
        "cloud.yaml",
        name=json.dumps(job.name),
        nodes=job.nodes,
        provider=json.dumps(job.cloud.place),
        head=json.dumps(job.cloud.head(job.image)),
        resources=json.dumps({"CPU": job.machines.cpus, "GPU": job.gpus}),
        worker=json.dumps(job.cloud.worker(job.image, job.gpus)),
        waiting=json.dumps([_GPU_IS_UP] if job.gpus else []),
        mount=job.mount,
        options=job.cloud.mount_options,
        storage=job.cloud.storage,
        python=python,
        ray=python.with_name("ray"),
        export=f"export {variables}",
    )


#: Machines that are rented start, install their driver and mount the storage first (choice).
_RENTING_S = 1800
#: A driver that an image installs when it first starts takes minutes.
_GPU_IS_UP = "timeout 600 sh -c 'until nvidia-smi; do sleep 5; done'"


def cloud_drive(job: Job, script: Path) -> list[str]:
    """Starts the sweep on the head of a cluster file, in a terminal (tmux) that may be closed."""
    python = str(_environment(job) / "bin" / "python")
    words = shlex.join([*_drive(python, job), "--wait", str(_RENTING_S)])
    return ["ray", "exec", "--tmux", str(script), f"RAY_AUTH_MODE=token {words}"]


def ray_command(job: Job) -> list[str]:
    """Submits to a running cluster, whose nodes see the environment and the folders."""
    python = str(_environment(job) / "bin" / "python")
    # Without an id of ours, which Ray would refuse when the same sweep is submitted again, to go on.
    return ["ray", "job", "submit", "--address", job.address, "--no-wait", "--", *_drive(python, job)]


def local_command(job: Job) -> list[str]:
    """The sweep on this machine, with a Ray of its own."""
    return [sys.executable, "-m", "replora", "sweep", str(job.config), "--dir", str(job.folder)]


def _drive(python: str, job: Job) -> list[str]:
    place = ["--dir", str(job.folder), "--address", "auto"]
    machines = job.machines
    words = [
        *("--nodes", str(machines.nodes)),
        *("--gpus", str(machines.gpus)),
        *("--cpus", str(machines.cpus)),
    ]
    return [python, "-m", "cluster.launch.drive", str(job.config), *place, *words]


def _environment(job: Job) -> Path:
    return job.environment or Path(sys.prefix)


def _rendered(template: str, **fields: object) -> str:
    return _Template((TEMPLATES / template).read_text(encoding="utf-8")).substitute(fields, heap=heap.CONF)
