"""What a launched job runs on the cluster: `python -m cluster.launch.drive SWEEP --dir D --address A`.

Waits until all nodes have joined Ray and examines them (`replora doctor`), then runs `replora sweep` in this
process with what only the cluster knows: Ray's address, hosts and their threads (where the file leaves them
open), and MLflow's address, which comes from MLFLOW_TRACKING_URI so that no script or process list shows it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from cluster.launch.machines import Machines, layout, misfits, wishes_of
from replora.cli import main as replora
from replora.errors import ConfigError
from replora.reading.document import read_document

__all__ = ["doctor_arguments", "main", "sweep_arguments"]


def sweep_arguments(options: argparse.Namespace, environment: Mapping[str, str]) -> list[str]:
    """The words of `replora sweep`.

    Raises:
        ConfigError: If the file is no sweep, or the machines cannot hold its hosts.
    """
    wishes, machines = wishes_of(options.sweep), Machines(options.nodes, options.gpus, options.cpus)
    faults = list(misfits(machines, wishes))
    if faults:
        raise ConfigError("\n".join([f"{options.sweep} does not fit these machines:", *faults]))
    words = ["sweep", str(options.sweep), "--dir", str(options.dir), f"resources.address={options.address}"]
    hosts, threads = layout(machines, wishes)
    words += [f"resources.hosts={hosts}", f"resources.threads={threads}"]
    uri, tracking = environment.get("MLFLOW_TRACKING_URI"), read_document(options.sweep).data
    own = tracking.get("tracking") if isinstance(tracking, dict) else None
    if uri and not (isinstance(own, dict) and own.get("uri")):
        words.append(f"tracking.uri={uri}")
    return words


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the sweep; the exit status is that of `replora sweep`, or 3 where the machines are not fit."""
    parser = argparse.ArgumentParser(prog="python -m cluster.launch.drive")
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--address", required=True)
    parser.add_argument("--nodes", type=int, required=True, help="that train")
    parser.add_argument("--gpus", type=int, required=True, help="of each node")
    parser.add_argument("--cpus", type=int, required=True, help="of each node")
    parser.add_argument("--wait", type=int, default=300, help="longest wait for the nodes, in seconds")
    options = parser.parse_args(arguments)
    try:
        words = sweep_arguments(options, os.environ)
    except ConfigError as error:
        sys.stderr.write(f"ConfigError: {error}\n")
        return error.exit_status
    # A process of its own: what it has joined and imported is gone when the sweep begins.
    doctor = [sys.executable, "-m", "replora", *doctor_arguments(options)]
    return subprocess.run(doctor, stdout=sys.stderr, check=False).returncode or replora(words)


def doctor_arguments(options: argparse.Namespace) -> list[str]:
    """The words of `replora doctor`: all nodes are there, and fit."""
    place = ["--dir", str(options.dir), "--address", options.address]
    return ["doctor", *place, "--nodes", "--expect", str(options.nodes), "--wait", str(options.wait)]


if __name__ == "__main__":
    sys.exit(main())
