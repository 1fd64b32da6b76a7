"""Recomputed activations: the same numbers, with each slot's own dropout, from less memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from replora.config import AdapterMethod, PrefixMethod, RunConfig
from replora.models.base import Target
from replora.tasks.load import load_task
from replora.train.engine import load_base
from replora.train.pack import Pack
from replora.train.recompute import block_paths
from tests.replora.tiny_llama import save_commonsense, save_tiny_llama
from tests.replora.train.gangs import trained, with_engine


def run(backbone: dict[str, Any], task: dict[str, Any], method: str) -> RunConfig:
    return RunConfig.model_validate(
        {
            "backbone": backbone,
            "task": task,
            "method": {"name": method, "dropout": 0.3},
            "train": {"steps": 4, "batch": 4, "micro_batch": 2, "eval_every": 2},
        }
    )


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    folder = tmp_path_factory.mktemp("llama")
    save_tiny_llama(folder / "llama")
    save_commonsense(folder / "data")
    task = {"name": "commonsense", "root": folder / "data", "cutoff": 32, "val_items": 5}
    return run({"name": f"hf/{folder / 'llama'}"}, task, "replora")


@pytest.fixture(scope="module")
def vit() -> RunConfig:
    return run({"weights": "random"}, {"name": "digits"}, "lora")


def saved_bytes(config: RunConfig, folder: Path) -> int:
    """Bytes that autograd keeps between the passes of one step of one trial."""
    base = load_base(config, "cpu")
    task = load_task(config.task, precision="fp32", device="cpu", processor=base.processor)
    pack = Pack(config, base, task, 1)
    pack.admit("one", config, folder)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        forward = torch._C._current_graph_task_id() == -1  # what a second pass keeps, it soon lets go of
        if forward and not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        pack.step()
    return sum(kept.values())


@pytest.mark.parametrize("kind", ["llama", "vit"])
def test_recomputed_passes_change_no_number(kind: str, request: Any, tmp_path: Path) -> None:
    config = request.getfixturevalue(kind)
    kept = trained(config, tmp_path / "kept")["reports"]
    again = trained(with_engine(config, recompute=True), tmp_path / "again")["reports"]
    strip = ("seconds",)
    assert {key: {n: v for n, v in each.items() if n not in strip} for key, each in again.items()} == {
        key: {n: v for n, v in each.items() if n not in strip} for key, each in kept.items()
    }


@pytest.mark.parametrize("kind", ["llama", "vit"])
@pytest.mark.parametrize(
    "method", [AdapterMethod(dropout=0.3), PrefixMethod(tokens=3, made="mlp", hidden=7)], ids=lambda m: m.name
)
def test_recomputed_adapters_and_prefixes_change_no_number(
    kind: str, method: AdapterMethod | PrefixMethod, request: Any, tmp_path: Path
) -> None:
    config = request.getfixturevalue(kind).model_copy(update={"method": method})
    kept = trained(config, tmp_path / "kept")["reports"]
    again = trained(with_engine(config, recompute=True), tmp_path / "again")["reports"]
    assert kept.keys() == again.keys()
    for key, metrics in kept.items():
        assert again[key]["val_loss"] == metrics["val_loss"]
        assert again[key]["train_loss"] == metrics["train_loss"]


def test_dropout_matters_to_the_equality(llama: RunConfig, tmp_path: Path) -> None:
    dry = llama.model_copy(update={"method": llama.method.model_copy(update={"dropout": 0.0})})
    wet, without = (trained(each, tmp_path / str(n)) for n, each in enumerate((llama, dry)))
    assert wet["reports"]["one", 4]["train_loss"] != without["reports"]["one", 4]["train_loss"]


def test_recomputed_passes_keep_less(llama: RunConfig, tmp_path: Path) -> None:
    kept = saved_bytes(llama, tmp_path / "kept")
    assert saved_bytes(with_engine(llama, recompute=True), tmp_path / "again") < 0.5 * kept


def test_stage_3_and_recomputation_go_together(llama: RunConfig, tmp_path: Path) -> None:
    plain = trained(llama, tmp_path / "plain")["reports"]
    both = trained(with_engine(llama, zero=3, recompute=True), tmp_path / "both")["reports"]
    for key, metrics in plain.items():
        assert both[key]["val_loss"] == pytest.approx(metrics["val_loss"], rel=1e-4)


def test_a_block_is_what_holds_all_its_targets() -> None:
    names = ("layers.0.attn.q", "layers.0.mlp.up", "layers.1.attn.q", "layers.1.mlp.up")
    targets = [Target(name, int(name[7]), name, (0, 4), 4) for name in names]
    assert block_paths(targets) == ["layers.0", "layers.1"]
    assert block_paths([Target("query", 0, "layers.0.qkv", (0, 4), 4)]) == ["layers.0"]
