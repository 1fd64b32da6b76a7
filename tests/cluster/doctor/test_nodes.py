"""What is compared between the nodes of a cluster; the nodes are made here, their carrier is a loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.doctor.examine import Examination
from cluster.doctor.links import Gang, Heard
from cluster.doctor.nodes import NodeReport, compare, connect, examine_nodes

NODES = frozenset({"10.0.0.1", "10.0.0.2"})
VERSIONS = (("replora", "0.1.0"), ("ray", "2.60.0"))


def report(node: str, **changes: object) -> NodeReport:
    """A node on which all is well."""
    whole = NodeReport(node, (), NODES, 0.0, VERSIONS, ("A100, 81920 MiB, 550",))
    return replace(whole, **changes)  # type: ignore[arg-type]


def states(*reports: NodeReport) -> dict[str, str]:
    """State of each comparison."""
    return {finding.name: finding.state for finding in compare(reports, Path("/shared"))}


def test_nodes_alike_are_well() -> None:
    assert set(states(report("10.0.0.1"), report("10.0.0.2")).values()) == {"ok"}


@pytest.mark.parametrize(
    ("changes", "name", "state"),
    [
        ({"sees": frozenset({"10.0.0.2"})}, "shared", "error"),
        ({"skew_s": -90.0}, "clocks", "warning"),
        ({"versions": (("replora", "0.1.0"), ("ray", "2.61.0"))}, "versions", "error"),
        ({"gpus": ("L4, 23034 MiB, 550",)}, "gpus", "warning"),
    ],
)
def test_a_node_that_differs_is_named_with_a_remedy(
    changes: dict[str, object], name: str, state: str
) -> None:
    found = compare([report("10.0.0.1"), report("10.0.0.2", **changes)], Path("/shared"))
    unwell = [finding for finding in found if finding.state != "ok"]
    assert [(finding.name, finding.state) for finding in unwell] == [(name, state)]
    assert unwell[0].remedy
    assert "10.0.0.2" in unwell[0].text or name == "gpus"


def ask(function: Callable[..., object], arguments: tuple[object, ...]) -> dict[str, object]:
    """Two nodes that are this machine."""
    return {node: function(*arguments, node) for node in sorted(NODES)}


def test_markers_tell_who_sees_whom_and_are_removed(tmp_path: Path) -> None:
    reports = examine_nodes(Examination(tmp_path), ask)
    assert [each.sees for each in reports] == [NODES, NODES]
    assert {each.name for each in reports[0].findings} >= {"python", "memory", "runs"}
    assert list(tmp_path.iterdir()) == []


def test_a_node_without_the_shared_folder_is_found(tmp_path: Path) -> None:
    def apart(function: Callable[..., object], arguments: tuple[object, ...]) -> dict[str, object]:
        answers = ask(function, arguments)
        if isinstance(answers["10.0.0.2"], frozenset):
            answers["10.0.0.2"] = frozenset({"10.0.0.2"})
        return answers

    reports = examine_nodes(Examination(tmp_path), apart)
    assert states(*reports)["shared"] == "error"


def test_a_clock_that_is_off_is_told_by_how_much(tmp_path: Path) -> None:
    def late(function: Callable[..., object], arguments: tuple[object, ...]) -> dict[str, object]:
        answers = ask(function, arguments)
        return {node: each - 100 if isinstance(each, float) else each for node, each in answers.items()}

    assert [round(each.skew_s) for each in examine_nodes(Examination(tmp_path), late)] == [-100, -100]


@pytest.mark.parametrize(
    ("gpus", "places"),
    [
        ((0, 0), (("10.0.0.1", 1), ("10.0.0.2", 1))),
        ((8, 4), (("10.0.0.1", 8), ("10.0.0.2", 4))),
        ((0, 4), (("10.0.0.2", 4),)),
    ],
    ids=["no GPUs", "GPUs", "a head without"],
)
def test_a_process_for_each_gpu_is_connected(gpus: tuple[int, int], places: object) -> None:
    gangs: list[Gang] = []

    def scripted(function: Callable[..., object], arguments: tuple[object, ...]) -> dict[str, object]:
        if not arguments:
            return {node: (f"{node}:5000", count) for node, count in zip(sorted(NODES), gpus, strict=True)}
        assert isinstance(arguments[0], Gang)
        gangs.append(arguments[0])
        stage = "nccl" if any(gpus) else "gloo"
        return {node: Heard(node, any(gpus), ((stage, 0.001),), "", "") for node, _ in arguments[0].places}

    assert connect(scripted).state == "ok"
    assert gangs[0].places == places
    assert gangs[0].address == f"{gangs[0].places[0][0]}:5000"
