"""A checkpoint or an adapter with any damage is never taken for a good one, and stays as it is."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replora.config import LoraMethod, RunConfig
from replora.errors import AdapterError, CheckpointError
from replora.methods.folder import SavedAdapter, load_adapter, save_adapter
from replora.train.checkpoint import SlotState, newest_checkpoint, read_checkpoint, write_checkpoint

OFTEN = settings(
    deadline=None, max_examples=250, derandomize=True, suppress_health_check=list(HealthCheck), database=None
)


def state(step: int) -> SlotState:
    tensors = {f"{part}/x": torch.arange(6.0).reshape(2, 3) + step for part in ("value", "first", "second")}
    return SlotState("abc", step, 0.1 * step, 3, tensors)


def same(found: SlotState, expected: SlotState) -> bool:
    counters = (found.fingerprint, found.step, found.loss_sum, found.loss_count)
    return (
        counters == (expected.fingerprint, expected.step, expected.loss_sum, expected.loss_count)
        and found.tensors.keys() == expected.tensors.keys()
        and all(torch.equal(found.tensors[name], tensor) for name, tensor in expected.tensors.items())
    )


def damaged(content: bytes, data: st.DataObject) -> bytes:
    at = data.draw(st.integers(0, len(content) - 1))
    more = data.draw(st.binary(min_size=1, max_size=9))
    kinds = {
        "cut": content[:at],
        "flip": content[:at] + bytes([content[at] ^ (more[0] or 1)]) + content[at + 1 :],
        "insert": content[:at] + more + content[at:],
        "remove": content[:at] + content[at + len(more) :],
    }
    return kinds[data.draw(st.sampled_from(sorted(kinds)))]


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@OFTEN
@given(data=st.data())
def test_a_damaged_checkpoint_is_passed_over_for_the_good_one_before(
    folder: Path, data: st.DataObject
) -> None:
    write_checkpoint(folder / "run", state(1))
    newest = write_checkpoint(folder / "run", state(2))
    newest.write_bytes(damaged(newest.read_bytes(), data))
    before = hashes(folder / "run")
    with suppress(CheckpointError):  # where the damage is in the run's name: another run's folder
        found = newest_checkpoint(folder / "run", "abc")
        assert found is not None
        assert same(found, state(1)) or same(found, state(2))
    assert hashes(folder / "run") == before


@OFTEN
@given(content=st.binary(max_size=80))
def test_any_bytes_are_no_checkpoint(folder: Path, content: bytes) -> None:
    path = folder / "step-00000001.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="step-00000001"):
        read_checkpoint(path)


@OFTEN
@given(data=st.data(), name=st.sampled_from(["adapter_config.json", "adapter.safetensors"]))
def test_a_damaged_adapter_is_refused_or_harmless(folder: Path, data: st.DataObject, name: str) -> None:
    made = SavedAdapter(RunConfig(method=LoraMethod(rank=2)), "base", 0, {"a": torch.arange(6.0)})
    save_adapter(folder / "adapter", made)
    path = folder / "adapter" / name
    path.write_bytes(damaged(path.read_bytes(), data))
    before = hashes(folder / "adapter")
    with suppress(AdapterError):
        load_adapter(folder / "adapter")
    assert hashes(folder / "adapter") == before
