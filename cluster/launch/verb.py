"""`replora launch`: a sweep on this machine, a Ray cluster, Slurm, Kubernetes or a cloud."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from cluster.launch.cloud import Cloud, Provider
from cluster.launch.job import Job, Place, job_name
from cluster.launch.submit import prepare, submit
from replora.verbs import Answer, Verb

__all__ = ["LAUNCH"]


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, metavar="SWEEP.yaml", help="on storage that every node sees")
    parser.add_argument("--on", choices=get_args(Place), required=True, help="where the sweep runs")
    parser.add_argument("--dir", type=Path, metavar="D", help="of the sweep (default: runs/<file's name>)")
    parser.add_argument("--name", help="of the job (default: from the file's name)")
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="machines")
    parser.add_argument("--gpus", type=int, default=0, metavar="N", help="of each machine")
    parser.add_argument(
        "--cpus", type=int, metavar="N", help="of each machine (default: as GPUs, at least 2)"
    )
    parser.add_argument("--memory", type=int, metavar="GIB", help="of each machine (slurm; kuberay: 16)")
    parser.add_argument(
        "--env", type=Path, metavar="D", help="Python environment (not kuberay; default: this)"
    )
    parser.add_argument("--time", default="24:00:00", metavar="T", help="limit (slurm)")
    parser.add_argument("--partition", help="slurm")
    parser.add_argument("--account", help="slurm")
    parser.add_argument("--address", default="http://127.0.0.1:8265", metavar="URL", help="dashboard (ray)")
    parser.add_argument(
        "--image", help="container with replora and ray[default] (kuberay), boot image (cloud)"
    )
    parser.add_argument("--claim", help="shared persistent volume claim (kuberay)")
    parser.add_argument(
        "--mount", type=Path, default=Path("/shared"), metavar="D", help="of shared storage (kuberay, cloud)"
    )
    parser.add_argument("--namespace", default="default", help="kuberay")
    parser.add_argument(
        "--spot", metavar="KEY=VALUE", help="label of spot machines for the workers (kuberay)"
    )
    parser.add_argument("--provider", choices=get_args(Provider), default="aws", help="cloud")
    parser.add_argument("--project", help="of Google Cloud (cloud)")
    parser.add_argument("--region", help="cloud (default: us-west-2, us-central1)")
    parser.add_argument("--zone", default="a", help="letter of the region's zone (cloud)")
    parser.add_argument("--instance", metavar="TYPE", help="of the spot workers (cloud)")
    parser.add_argument("--storage", metavar="SERVER:/PATH", help="NFS export for --mount (cloud)")


def _run(options: argparse.Namespace) -> Answer:
    job = _job(options)
    submission = prepare(job, options.on)
    document = {
        "on": submission.place,
        "name": job.name,
        "sweep_dir": str(job.folder),
        "command": submission.command,
        "text": submission.text,
        "dry_run": options.dry_run,
        "answer": None,
    }
    if options.dry_run:
        return Answer(document, submission.text.rstrip())
    said = submit(submission)
    return Answer({**document, "answer": said}, said or f"The sweep is in {job.folder}.")


def _job(options: argparse.Namespace) -> Job:
    here = options.on in ("slurm", "ray")  # this machine sees the same storage at the same paths
    config: Path = options.config.absolute() if here else options.config
    folder: Path = options.dir or Path("runs", config.stem)
    return Job(
        name=options.name or job_name(config),
        config=config,
        folder=folder.absolute() if here else folder,
        nodes=options.nodes,
        gpus=options.gpus,
        cpus=options.cpus,
        memory_gib=options.memory,
        environment=options.env,
        time=options.time,
        partition=options.partition,
        account=options.account,
        address=options.address,
        image=options.image,
        claim=options.claim,
        mount=options.mount,
        namespace=options.namespace,
        spot=options.spot,
        cloud=Cloud(
            provider=options.provider,
            project=options.project,
            region=options.region,
            zone=options.zone,
            instance=options.instance,
            storage=options.storage,
        ),
    )


LAUNCH = Verb("launch", "run a sweep here or on a cluster", _configure, _run, spends=True)
