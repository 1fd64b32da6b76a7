"""What a launched job runs on the cluster: `python -m cluster.launch.drive SWEEP --dir D --address A`.

Examines its machine, then runs `replora sweep` in this process with what only the cluster knows: Ray's
address, hosts and their threads (where the file leaves them open), and MLflow's address, which comes from
MLFLOW_TRACKING_URI so that no script and no process list shows it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from cluster.doctor.examine import Examination, examine
from cluster.launch.machines import Machines, layout, misfits, wishes_of
from replora.cli import main as replora
from replora.document import read_document
from replora.errors import ConfigError, MachineError

__all__ = ["main", "sweep_arguments"]


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
    """Runs the sweep; the exit status is that of `replora sweep`, or 3 on a machine that is not fit."""
    parser = argparse.ArgumentParser(prog="python -m cluster.launch.drive")
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--address", required=True)
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--gpus", type=int, required=True, help="of each node")
    parser.add_argument("--cpus", type=int, required=True, help="of each node")
    options = parser.parse_args(arguments)
    errors = [finding for finding in examine(_examination(options)) if finding.state == "error"]
    for finding in errors:
        sys.stderr.write(f"{finding.name}: {finding.text}\n  {finding.remedy}\n")
    if errors:
        return MachineError.exit_status
    try:
        words = sweep_arguments(options, os.environ)
    except ConfigError as error:
        sys.stderr.write(f"ConfigError: {error}\n")
        return error.exit_status
    return replora(words)


def _examination(options: argparse.Namespace) -> Examination:
    address = None if options.address == "auto" else options.address
    return Examination(options.dir, os.environ.get("MLFLOW_TRACKING_URI"), address)


if __name__ == "__main__":
    sys.exit(main())
