"""Cached tensors are built once, checked on every read and never changed by a reader."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from replora.cache import cached_tensors, hash_tensors, read_tensors
from replora.errors import CheckpointError, MachineError
from replora.folders import cache_folder
from tests.waiting import PATIENCE_S

BUILDER = """
import sys, time
from pathlib import Path
import torch
from replora.cache import cached_tensors
def build():
    with Path(sys.argv[1]).open("a") as log:
        log.write("built\\n")
    time.sleep(1.0)
    return {"w": torch.ones(3)}
print(cached_tensors("slow", {"n": 1}, build).checksum)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, which does not exist yet."""
    path = tmp_path / "cache"
    monkeypatch.setenv("REPLORA_CACHE", str(path))
    return path


class Counter:
    """A builder that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> dict[str, Tensor]:
        self.calls += 1
        return {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(7)}


def damage_by_truncation(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def damage_by_one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def damage_by_emptying(path: Path) -> None:
    path.write_bytes(b"")


def test_second_reader_does_not_build(folder: Path) -> None:
    build = Counter()
    first = cached_tensors("thing", {"n": 1}, build)
    second = cached_tensors("thing", {"n": 1}, build)
    assert build.calls == 1
    assert torch.equal(first.tensors["a"], second.tensors["a"])
    assert first.checksum == second.checksum == hash_tensors(Counter()())


def test_another_recipe_is_another_file(folder: Path) -> None:
    build = Counter()
    cached_tensors("thing", {"n": 1}, build)
    cached_tensors("thing", {"n": 2}, build)
    assert build.calls == 2
    assert len(list(folder.glob("thing-*.safetensors"))) == 2


@pytest.mark.parametrize("damage", [damage_by_truncation, damage_by_one_bit, damage_by_emptying])
def test_damaged_file_is_built_again_with_one_line_of_log(
    folder: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    build = Counter()
    cached_tensors("thing", {"n": 1}, build)
    damage(next(folder.glob("*.safetensors")))
    with caplog.at_level(logging.WARNING, "replora.cache"):
        found = cached_tensors("thing", {"n": 1}, build)
        cached_tensors("thing", {"n": 1}, build)
    assert build.calls == 2
    assert torch.equal(found.tensors["a"], build()["a"])
    assert [record.getMessage().endswith("building it again") for record in caplog.records] == [True]


def test_processes_that_ask_at_once_build_once(folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    started = [
        subprocess.Popen([sys.executable, "-c", BUILDER, str(log)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    answers = {process.communicate(timeout=PATIENCE_S)[0] for process in started}
    assert [process.returncode for process in started] == [0, 0]
    assert log.read_text().splitlines() == ["built"]
    assert answers == {hash_tensors({"w": torch.ones(3)}) + "\n"}


def test_failed_build_leaves_nothing_behind(folder: Path) -> None:
    def fail() -> dict[str, Tensor]:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        cached_tensors("thing", {"n": 1}, fail)
    assert [path.suffix for path in folder.iterdir()] == [".lock"]
    assert cached_tensors("thing", {"n": 1}, Counter()).tensors.keys() == {"a", "b"}


def test_writing_to_a_cached_tensor_never_reaches_the_file(folder: Path) -> None:
    mine = cached_tensors("thing", {"n": 1}, Counter()).tensors["a"]
    mine.fill_(99.0)
    path = next(folder.glob("*.safetensors"))
    assert torch.equal(read_tensors(path)[0]["a"], Counter()()["a"])


def test_cached_tensors_are_mapped_from_their_file(folder: Path) -> None:
    found = cached_tensors("thing", {"n": 1}, lambda: {"big": torch.ones(2**20)})
    path = next(folder.glob("*.safetensors"))
    assert found.tensors["big"].sum() == 2**20
    assert str(path) in Path("/proc/self/maps").read_text()


def test_folder_that_cannot_be_written_is_a_machine_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("REPLORA_CACHE", str(tmp_path / "file"))
    with pytest.raises(MachineError, match="Set REPLORA_CACHE to a folder that can"):
        cached_tensors("thing", {"n": 1}, Counter())


def test_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REPLORA_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    with pytest.raises(MachineError, match="Set REPLORA_CACHE"):
        cache_folder()


def test_folder_is_the_override_then_the_users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPLORA_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    monkeypatch.setenv("HOME", "/c")
    found = [cache_folder()]
    monkeypatch.delenv("REPLORA_CACHE")
    found.append(cache_folder())
    monkeypatch.delenv("XDG_CACHE_HOME")
    found.append(cache_folder())
    assert found == [Path("/a"), Path("/b/replora"), Path("/c/.cache/replora")]


@pytest.mark.parametrize(
    "other",
    [
        {"w": torch.zeros(2, 3), "v": torch.ones(1)},
        {"w": torch.zeros(3, 2)},
        {"x": torch.zeros(2, 3)},
        {"w": torch.zeros(2, 3, dtype=torch.float64)},
        {"w": torch.tensor([[0.0, 0, 0], [0, 0, 1e-30]])},
    ],
)
def test_hash_tells_names_shapes_types_and_values_apart(other: dict[str, Tensor]) -> None:
    assert hash_tensors({"w": torch.zeros(2, 3)}) != hash_tensors(other)


def test_hash_does_not_depend_on_order_or_strides() -> None:
    matrix = torch.arange(6.0).view(2, 3)
    one = {"a": matrix, "b": torch.ones(1, dtype=torch.bfloat16)}
    other = {"b": torch.ones(1, dtype=torch.bfloat16), "a": matrix.T.contiguous().T}
    assert hash_tensors(one) == hash_tensors(other)


def test_missing_file_is_a_checkpoint_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nothing\.safetensors: cannot be read"):
        read_tensors(tmp_path / "nothing.safetensors")
