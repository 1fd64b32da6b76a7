"""Hands a rendered job to the program that runs it."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.launch.job import Job, Place
from cluster.launch.render import (
    cloud_drive,
    cloud_file,
    local_command,
    ray_command,
    rayjob_manifest,
    slurm_script,
)
from replora.atomic import write_atomically
from replora.errors import ConfigError, MachineError, RunFailedError

__all__ = ["Submission", "prepare", "submit"]

_REMEDY = {
    "sbatch": "Run this on a login node of the Slurm cluster.",
    "kubectl": "Install kubectl and choose the cluster (kubectl config use-context).",
    "ray": "Install ray[default], which holds the job client.",
}


@dataclass(frozen=True)
class Submission:
    """What is handed over.

    Attributes:
        place: Where to.
        command: Argument list of the program.
        text: The script or manifest; for the others, the command as a shell would take it.
        script: Where the script is written before it is handed over, if the program reads a file.
        then: Argument list of the same program, run when the first has ended well.
    """

    place: Place
    command: list[str]
    text: str
    script: Path | None = None
    then: tuple[str, ...] = ()


def prepare(job: Job, place: Place) -> Submission:
    """Renders a job; nothing is written or started.

    Raises:
        ConfigError: If the job cannot be launched there.
    """
    job.check(place)
    if place == "slurm":
        script = job.folder / "launch.slurm"
        return Submission(place, ["sbatch", "--parsable", str(script)], slurm_script(job), script)
    if place == "kuberay":
        return Submission(place, ["kubectl", "create", "-f", "-"], rayjob_manifest(job))
    if place == "cloud":
        script = Path(f"{job.name}.cloud.yaml")  # here: this machine need not see the shared storage
        then = cloud_drive(job, script)
        command = ["ray", "up", "--yes", str(script)]
        text = f"{cloud_file(job)}# {shlex.join(command)}\n# {shlex.join(then)}\n"
        return Submission(place, command, text, script, tuple(then))
    command = ray_command(job) if place == "ray" else local_command(job)
    return Submission(place, command, f"{shlex.join(command)}\n")


def submit(submission: Submission) -> str:
    """Hands over, and gives what the program says (its job's number, usually).

    Raises:
        MachineError: If the program is missing.
        RunFailedError: If it refuses.
    """
    program = submission.command[0]
    if shutil.which(program) is None:
        raise MachineError(f"{program} is not installed here.\n  {_REMEDY.get(program, '')}")
    if submission.place == "cloud":
        _check_token()
        _check_unchanged(submission)
    if submission.script is not None:
        submission.script.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(submission.script, submission.text.encode())
    stdin = submission.text if submission.place == "kuberay" else None
    said = ""
    for command in filter(None, (submission.command, submission.then)):
        done = _run(command, stdin, watch=submission.place in ("local", "cloud"))
        said = (done.stdout or "").strip()
        if done.returncode:
            reason = (done.stderr or said).strip()
            raise RunFailedError(f"{program} ended with status {done.returncode}.\n  {reason}".rstrip())
    return said


def _check_token(path: Path | None = None) -> None:
    """The token that `ray up` copies to every machine is there."""
    path = path or Path.home() / ".ray" / "auth_token"
    if not path.is_file():
        raise MachineError(f"there is no token in {path}.\n  Make one: `ray get-auth-token --generate`.")


def _check_unchanged(submission: Submission) -> None:
    """A cluster file that a person has edited is not written over."""
    script = submission.script
    if script is not None and script.exists() and script.read_text(encoding="utf-8") != submission.text:
        raise ConfigError(
            f"{script} is there and differs from what would be written.\n  If you edited it, run the two "
            "commands that `replora launch ... --dry-run` shows; else remove it."
        )


def _run(command: Sequence[str], stdin: str | None, *, watch: bool) -> subprocess.CompletedProcess[str]:
    """Runs a program; one that is watched shows its progress and its answer on stderr."""
    if watch:
        return subprocess.run(command, stdout=sys.stderr, text=True, check=False)
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
