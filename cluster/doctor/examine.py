"""`replora doctor`: the examination of one machine.

`examine` is a plain function of plain data, so that a launcher can run it on another node and send the
findings home (cluster.doctor.nodes); `DOCTOR` runs it on this machine.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.doctor import links, machine, network, software
from cluster.doctor.finding import Finding
from replora.folders import cache_folder
from replora.verbs import Answer, Verb

__all__ = ["DOCTOR", "Examination", "examine", "finding_line"]


@dataclass(frozen=True)
class Examination:
    """What to look at beside the machine itself.

    Attributes:
        folder: Where runs go.
        mlflow: Tracking URI, if one is to be used.
        address: `host:port` of a Ray head, if one is to be used.
        deep: Whether to import torch and let processes sum numbers together, which takes seconds.
    """

    folder: Path = Path("runs")
    mlflow: str | None = None
    address: str | None = None
    deep: bool = False


def examine(what: Examination) -> list[Finding]:
    """Every finding about this machine."""
    findings = [
        software.check_python(),
        software.check_packages(),
        software.check_gpu(),
        machine.check_memory(),
        machine.check_cores(),
        machine.check_shared_memory(),
        machine.check_folder("cache", cache_folder()),
        machine.check_folder("runs", what.folder),
        machine.check_clock(what.folder),
        network.check_ports(),
    ]
    if what.mlflow:
        findings.append(network.check_mlflow(what.mlflow))
    if what.address:
        findings += [network.check_ray(what.address), network.check_token()]
    if what.deep:
        findings += [software.check_torch(), links.check_links()]
    return findings


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dir", type=Path, default=Path("runs"), metavar="D", help="where runs go")
    parser.add_argument("--address", metavar="HOST:PORT", help="of a Ray head that is to be used")
    parser.add_argument("--mlflow", metavar="URI", help="tracking server (default: MLFLOW_TRACKING_URI)")
    parser.add_argument(
        "--deep",
        action="store_true",
        help="also import torch, and sum numbers over processes (NCCL or gloo): seconds",
    )


def _run(options: argparse.Namespace) -> Answer:
    uri = options.mlflow or os.environ.get("MLFLOW_TRACKING_URI")
    findings = examine(Examination(options.dir, uri, options.address, options.deep))
    fit = all(finding.state != "error" for finding in findings)
    document: dict[str, Any] = {"fit": fit, "findings": [asdict(finding) for finding in findings]}
    lines = [finding_line(finding) for finding in findings]
    end = "This machine is fit." if fit else "This machine is not fit: see each error's remedy."
    return Answer(document, "\n".join([*lines, "", end]), status=0 if fit else 3)


def finding_line(finding: Finding) -> str:
    """A finding for a person, its remedy below it."""
    line = f"{finding.state.ljust(8)} {finding.name.ljust(10)} {finding.text}"
    return f"{line}\n{' ' * 20}{finding.remedy}" if finding.remedy else line


DOCTOR = Verb("doctor", "examine this machine, with a remedy for each finding", _configure, _run)
