"""What only a look at all machines of a cluster together tells: the shared folder, clocks, versions.

Plain data in, plain data out: who carries `report` to the nodes is not decided here (sweeps.doctoring does).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from uuid import uuid4

from cluster.doctor.examine import Examination, examine
from cluster.doctor.finding import Finding, bad, doubtful, good
from cluster.doctor.links import Gang, Heard, check_links, judge, run_gang
from cluster.doctor.machine import MOST_SKEW
from cluster.doctor.software import check_torch, gpus, visible_gpus
from replora.train.gang import free_address

__all__ = ["Ask", "NodeReport", "compare", "connect", "examine_nodes", "look", "report"]

#: Runs a function on every node with the arguments and, as the last one, the node's address; gives the
#: answers by address (sweeps.ray_backend.nodes).
Ask = Callable[[Callable[..., object], tuple[object, ...]], dict[str, object]]

#: Packages whose releases must agree where objects travel between machines.
_AGREE = ("replora", "ray", "torch", "pydantic")


@dataclass(frozen=True)
class NodeReport:
    """One node's own findings, and what is compared with the others.

    Attributes:
        node: Its address.
        findings: About itself.
        sees: Markers of nodes that it found in the shared folder, its own among them.
        skew_s: Its clock less the asker's, as far as the time that the answer took lets one tell.
        versions: Of Python and of the packages that must agree.
        gpus: Their names, memory and driver.
    """

    node: str
    findings: tuple[Finding, ...]
    sees: frozenset[str]
    skew_s: float
    versions: tuple[tuple[str, str], ...]
    gpus: tuple[str, ...]


def report(what: Examination, marker: str, node: str) -> NodeReport:
    """Examines the node that this runs on, and leaves its marker in the shared folder.

    Args:
        what: What to look at; `folder` is the shared one.
        marker: Prefix of this examination's markers.
        node: This node's address.
    """
    findings = examine(replace(what, address=None, deep=False))  # the head was asked already
    if what.deep and visible_gpus():  # processes without GPUs are looked at between nodes: `connect`
        findings += [check_torch(), check_links()]
    with suppress(OSError):  # the finding about the folder says why; the others then miss this marker
        (what.folder / f"{marker}{node}").touch()
    versions = tuple((name, metadata.version(name)) for name in _AGREE)
    return NodeReport(node, tuple(findings), frozenset(), 0.0, versions, tuple(gpus() or ()))


def seen(folder: Path, marker: str) -> frozenset[str]:
    """Nodes whose marker this node finds."""
    return frozenset(path.name.removeprefix(marker) for path in folder.glob(f"{marker}*"))


def examine_nodes(what: Examination, ask: Ask) -> list[NodeReport]:
    """Reports of all nodes; the markers are removed at the end.

    Args:
        what: What to look at; `folder` must be the shared one.
        ask: Carries it to the nodes.
    """
    what = replace(what, folder=what.folder.absolute())
    marker = f".replora-doctor-{uuid4().hex[:12]}-"
    try:
        answers = ask(report, (what, marker))
        views = ask(_seen_from, (what.folder, marker))
        before = time.time()
        clocks = ask(_clock, ())
        middle, slack = (before + time.time()) / 2, (time.time() - before) / 2
    finally:
        for path in what.folder.glob(f"{marker}*"):
            path.unlink(missing_ok=True)
    found = []
    for node, answer in sorted(answers.items()):
        assert isinstance(answer, NodeReport)
        clock, view = clocks.get(node), views.get(node)
        skew = clock - middle if isinstance(clock, float) else 0.0
        known = view if isinstance(view, frozenset) else frozenset()
        found.append(replace(answer, sees=known, skew_s=0.0 if abs(skew) <= slack else skew))
    return found


def _clock(node: str) -> float:
    del node
    return time.time()


def _seen_from(folder: Path, marker: str, node: str) -> frozenset[str]:
    del node
    return seen(folder, marker)


def look(what: Examination, ask: Ask) -> tuple[list[NodeReport], list[Finding]]:
    """Reports of all nodes, and the findings about the nodes together."""
    reports = examine_nodes(what, ask)
    return reports, [*compare(reports, what.folder), *([connect(ask)] if what.deep else [])]


def connect(ask: Ask) -> Finding:
    """Whether the nodes' GPUs sum numbers together; without GPUs anywhere, a process of each node does.

    Nodes without GPUs among nodes with some (a head that trains nothing) are left out: no trial spans them.
    """
    found = {node: _place(answer) for node, answer in sorted(ask(_place_here, ()).items())}
    gpus_anywhere = any(count for _, count in found.values())
    places = tuple((node, count or 1) for node, (_, count) in found.items() if count or not gpus_anywhere)
    gang = Gang(found[places[0][0]][0], places)
    answers = ask(run_gang, (gang,)).values()
    return judge(gang, [each for each in answers if isinstance(each, Heard)])


def _place_here(node: str) -> tuple[str, int]:
    """A free port of a node, as `host:port`, and how many GPUs it has."""
    return free_address(node), len(visible_gpus())


def _place(answer: object) -> tuple[str, int]:
    assert isinstance(answer, tuple)
    return str(answer[0]), int(answer[1])


def compare(reports: Sequence[NodeReport], folder: Path) -> list[Finding]:
    """Findings about the nodes together."""
    return [
        _check_shared(reports, folder),
        _check_clocks(reports),
        _check_versions(reports),
        _check_gpus(reports),
    ]


def _check_shared(reports: Sequence[NodeReport], folder: Path) -> Finding:
    nodes = {each.node for each in reports}
    blind = [each.node for each in reports if each.sees != nodes]
    if blind:
        text = f"{', '.join(blind)}: do not see what the other nodes write in {folder}"
        return bad("shared", text, "Mount the same storage there on every node, or give another with --dir.")
    return good("shared", f"{len(nodes)} nodes see each other's files in {folder}")


def _check_clocks(reports: Sequence[NodeReport]) -> Finding:
    off = [f"{each.node} by {each.skew_s:+.0f} s" for each in reports if abs(each.skew_s) > MOST_SKEW]
    if off:
        remedy = "Run a time service (chrony, systemd-timesyncd) on every node."
        return doubtful("clocks", f"differ from this machine's: {', '.join(off)}", remedy)
    return good("clocks", f"agree within {MOST_SKEW:.0f} s")


def _check_versions(reports: Sequence[NodeReport]) -> Finding:
    by_version: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for each in reports:
        by_version.setdefault(each.versions, []).append(each.node)
    if len(by_version) > 1:
        rows = [
            f"{', '.join(nodes)}: {' '.join(map(' '.join, found))}" for found, nodes in by_version.items()
        ]
        remedy = "Install one set everywhere: pip install -c constraints.txt."
        return bad("versions", f"differ between nodes ({'; '.join(rows)})", remedy)
    return good("versions", " ".join(map(" ".join, next(iter(by_version)))) if by_version else "no nodes")


def _check_gpus(reports: Sequence[NodeReport]) -> Finding:
    kinds = {gpu for each in reports for gpu in each.gpus}
    if len(kinds) > 1:
        text = f"of several kinds or drivers: {'; '.join(sorted(kinds))}"
        return doubtful("gpus", text, "Plan for the smallest of them, or start one sweep for each kind.")
    return good("gpus", f"{sum(len(each.gpus) for each in reports)} on {len(reports)} nodes, all alike")
