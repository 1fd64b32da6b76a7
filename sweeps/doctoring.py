"""`replora doctor`: of this machine, or of every node of a Ray cluster.

The verb stands here and not in `cluster`, because only `sweeps.ray_backend` may know Ray
(docs/decisions: the doctor reaches nodes through the Ray backend).
"""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from typing import Any

from cluster.doctor.examine import DOCTOR as HERE
from cluster.doctor.examine import Examination, finding_line
from replora.errors import ConfigError
from replora.verbs import Answer, Verb

__all__ = ["DOCTOR"]


def _configure(parser: argparse.ArgumentParser) -> None:
    HERE.configure(parser)
    parser.add_argument(
        "--nodes", action="store_true", help="examine every node of the Ray cluster at --address, too"
    )
    parser.add_argument(
        "--expect", type=int, default=0, metavar="N", help="wait for the head and so many nodes first"
    )
    parser.add_argument("--wait", type=float, default=300, metavar="S", help="at most so long (default: 300)")


def _run(options: argparse.Namespace) -> Answer:
    if not options.nodes:
        return HERE.run(options)
    if not options.address:
        raise ConfigError(
            "--nodes needs --address: host:port of the cluster's head, or auto on a node of it."
        )
    if options.expect:
        from cluster.doctor.network import await_ray

        await_ray(options.address, options.wait)
    here = HERE.run(argparse.Namespace(**{**vars(options), "deep": False}))  # this machine is a node, too
    return here if here.status else _of_nodes(options, here)


def _of_nodes(options: argparse.Namespace, here: Answer) -> Answer:
    """The answer about a cluster, after the one about this machine."""
    from cluster.doctor.nodes import look
    from sweeps.ray_backend.nodes import on_every_node

    uri = options.mlflow or os.environ.get("MLFLOW_TRACKING_URI")
    what = Examination(options.dir, uri, None, options.deep)
    what.folder.mkdir(parents=True, exist_ok=True)
    reports, together = on_every_node(
        options.address, lambda ask: look(what, ask), options.expect, options.wait
    )
    findings = [*together, *(finding for each in reports for finding in each.findings)]
    fit = all(finding.state != "error" for finding in findings)
    nodes = {each.node: [asdict(finding) for finding in each.findings] for each in reports}
    assert isinstance(here.document, dict)
    document: dict[str, Any] = {
        **here.document,
        "fit": fit,
        "nodes": nodes,
        "together": [asdict(finding) for finding in together],
    }
    lines = [here.text, "", f"All {len(reports)} nodes together:", *map(finding_line, together)]
    for each in reports:
        unwell = [finding for finding in each.findings if finding.state != "ok"]
        lines += [
            "",
            f"{each.node}: {len(each.findings) - len(unwell)} findings are well",
            *map(finding_line, unwell),
        ]
    end = "Every node is fit." if fit else "The cluster is not fit: see each error's remedy."
    return Answer(document, "\n".join([*lines, "", end]), status=0 if fit else 3)


DOCTOR = Verb("doctor", "examine this machine or a cluster, with a remedy for each finding", _configure, _run)
