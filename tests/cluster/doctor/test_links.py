"""Whether processes can train together: two real ones here, and what is said where they cannot."""

from __future__ import annotations

import pytest

from cluster.doctor.links import Gang, Heard, check_links, judge, run_gang

NODES = (("10.0.0.1", 2), ("10.0.0.2", 2))


def heard(node: str, stage: str, *, gpus: bool = True, error: str = "no answer within 90 s") -> Heard:
    """Two processes of a node that came as far as a stage."""
    return Heard(node, gpus, ((stage, 0.002), (stage, 0.001)), error, "eth0 10.0.0.1, ib0 10.1.0.1")


def test_two_processes_without_gpus_sum_numbers_over_gloo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = check_links()
    assert found.state == "ok", found
    assert found.text.startswith("2 processes on this machine sum 16 MiB over gloo")


def test_a_process_that_waits_in_vain_is_ended_and_is_a_finding() -> None:
    gang = Gang("127.0.0.1:1", (("here", 1), ("never there", 1)), limit_s=0.2)
    said = run_gang(gang, "here")
    assert said is not None
    found = judge(gang, [said])
    assert found.state == "error"
    assert "no answer within 0.2 s" in found.text


def test_all_gpus_that_sum_are_well() -> None:
    found = judge(Gang("", NODES), [heard(node, "nccl", error="") for node, _ in NODES])
    assert (found.state, found.text) == ("ok", "4 GPUs on 2 nodes sum 16 MiB over nccl in 2 ms")


@pytest.mark.parametrize(
    ("stage", "places", "text", "remedy"),
    [
        ("", NODES, "did not start", "replora doctor --deep"),
        ("started", NODES, "gloo did not connect", "GLOO_SOCKET_IFNAME"),
        ("gloo", NODES, "NCCL did not connect", "NCCL_SOCKET_IFNAME"),
        ("gloo", NODES[:1], "NCCL did not connect", "NCCL_P2P_DISABLE=1"),
    ],
)
def test_what_does_not_connect_has_its_own_remedy(
    stage: str, places: tuple[tuple[str, int], ...], text: str, remedy: str
) -> None:
    reports = [heard(node, stage if number == 0 else "nccl") for number, (node, _) in enumerate(places)]
    found = judge(Gang("", places), reports)
    assert found.state == "error"
    assert text in found.text
    assert "10.0.0.1 first" in found.text
    assert remedy in found.remedy
    assert stage == "" or len(places) == 1 or "eth0 10.0.0.1, ib0 10.1.0.1" in found.remedy


def test_a_gpu_that_torch_does_not_see_is_no_success() -> None:
    found = judge(Gang("", NODES), [heard(node, "gloo", error="") for node, _ in NODES])
    assert found.state == "error"
