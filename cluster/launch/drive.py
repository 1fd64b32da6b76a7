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
from replora.cli import main as replora
from replora.document import read_document

__all__ = ["main", "sweep_arguments"]


def sweep_arguments(options: argparse.Namespace, environment: Mapping[str, str]) -> list[str]:
    """The words of `replora sweep`."""
    words = ["sweep", str(options.sweep), "--dir", str(options.dir), f"resources.address={options.address}"]
    own = read_document(options.sweep).data
    given = own if isinstance(own, dict) else {}
    for key, value in (("hosts", options.hosts), ("threads", options.threads)):
        if value and not _names(given, "resources", key):
            words.append(f"resources.{key}={value}")
    uri = environment.get("MLFLOW_TRACKING_URI")
    if uri and not _names(given, "tracking", "uri"):
        words.append(f"tracking.uri={uri}")
    return words


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the sweep; the exit status is that of `replora sweep`, or 3 on a machine that is not fit."""
    parser = argparse.ArgumentParser(prog="python -m cluster.launch.drive")
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--address", required=True)
    parser.add_argument("--hosts", type=int)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args(arguments)
    errors = [finding for finding in examine(_examination(options)) if finding.state == "error"]
    for finding in errors:
        sys.stderr.write(f"{finding.name}: {finding.text}\n  {finding.remedy}\n")
    return 3 if errors else replora(sweep_arguments(options, os.environ))


def _examination(options: argparse.Namespace) -> Examination:
    address = None if options.address == "auto" else options.address
    return Examination(options.dir, os.environ.get("MLFLOW_TRACKING_URI"), address)


def _names(data: Mapping[str, object], section: str, key: str) -> bool:
    part = data.get(section)
    return isinstance(part, dict) and part.get(key) is not None


if __name__ == "__main__":
    sys.exit(main())
