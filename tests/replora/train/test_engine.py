"""Runs of several ranks and ZeRO stages against the plain engine; checkpoints that know no stage."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from replora.config import RunConfig
from replora.errors import ConfigError, MachineError, RunFailedError
from replora.train import engine
from replora.train.checkpoint import read_checkpoint
from replora.train.engine import base_json, slot_json
from replora.train.gang import run_ranks
from tests.replora.tiny_llama import save_tiny_llama
from tests.replora.train.gangs import (
    STAGES,
    alone,
    cases,
    dying,
    every_stage,
    in_turn,
    loading,
    resaved,
    save_inputs,
    slots,
    trained,
    turns,
    with_engine,
)

TOLERANCE = 1e-4  # relative, of losses: the aim of the engine


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """Six steps of RepLoRA with dropout on a tiny Llama, four micro-batches a step, with beam search."""
    folder = tmp_path_factory.mktemp("gang")
    save_inputs(folder)
    task = {"cutoff": 32, "val_items": 5, "val_answers": True, "new_tokens": 3, "beams": 2}
    run = {
        "backbone": {"name": f"hf/{folder / 'llama'}"},
        "task": {"name": "commonsense", "root": folder / "items", **task},
        "method": {"name": "replora", "rank": 4, "dropout": 0.1},
        "optim": {"lr": 2e-3, "clip_norm": 0.5},
        "train": {"steps": 6, "batch": 8, "micro_batch": 2, "eval_every": 3, "checkpoint_every": 4},
    }
    return RunConfig.model_validate(run)


@pytest.fixture(scope="module")
def plain(config: RunConfig) -> tuple[Path, dict[str, Any]]:
    folder = Path(config.backbone.name.removeprefix("hf/")).parent
    made = trained(config, folder / "plain")
    [path] = [path for path in made["saved"] if "/one/" in path]
    return folder, {**made, "tensors": read_checkpoint(Path(path)).tensors}  # it will be written again


@pytest.fixture(scope="module")
def said(config: RunConfig, plain: tuple[Path, dict[str, Any]]) -> list[Any]:
    """What rank 0 of two says of every stage."""
    heard: list[Any] = []
    run_ranks(every_stage, with_engine(config, ranks=2), plain[0], False, heard.append)
    return heard


def assert_same_losses(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found["reports"].keys() == expected["reports"].keys()
    for key, metrics in expected["reports"].items():
        for name in ("train_loss", "val_loss"):
            assert found["reports"][key][name] == pytest.approx(metrics[name], rel=TOLERANCE), (key, name)
        assert found["reports"][key]["accuracy"] == metrics["accuracy"]


@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_give_the_losses_of_the_plain_engine(
    said: list[Any], plain: tuple[Path, dict[str, Any]], stage: int
) -> None:
    assert_same_losses(next(each[1] for each in said if each[0] == stage), plain[1])


@pytest.mark.parametrize(("stage", "offload"), [(1, "none"), (2, "optimizer"), (3, "base")])
def test_one_rank_gives_the_losses_of_the_plain_engine(
    config: RunConfig, plain: tuple[Path, dict[str, Any]], tmp_path: Path, stage: int, offload: str
) -> None:
    assert_same_losses(trained(with_engine(config, zero=stage, offload=offload), tmp_path), plain[1])


@pytest.mark.parametrize("name", cases(Path()))
def test_two_ranks_give_the_losses_of_the_plain_engine_for_every_method(
    said: list[Any], plain: tuple[Path, dict[str, Any]], name: str
) -> None:
    expected = alone(cases(plain[0])[name], plain[0] / name / "plain")
    assert next(each[1] for each in said if each[0] == name) == pytest.approx(expected, rel=TOLERANCE)


def test_packs_that_take_turns_on_a_shared_base_do_not_meet(
    said: list[Any], plain: tuple[Path, dict[str, Any]]
) -> None:
    expected = in_turn(turns(plain[0]), plain[0] / "turns")
    assert len(expected) == 4
    assert next(each[1] for each in said if each[0] == "in turn") == pytest.approx(expected, rel=TOLERANCE)


def test_losses_depend_on_what_is_trained(config: RunConfig, tmp_path: Path, plain: Any) -> None:
    other = config.model_copy(update={"optim": config.optim.model_copy(update={"lr": 4e-3})})
    with pytest.raises(AssertionError):
        assert_same_losses(trained(other, tmp_path), plain[1])


def test_a_rank_holds_half_of_a_shared_base(said: list[Any], config: RunConfig) -> None:
    _, held, whole = next(each for each in said if each[0] == "held")
    assert whole == 0, "nothing is gathered outside of a pass"
    files = Path(config.backbone.name.removeprefix("hf/")).glob("*.safetensors")
    expected = sum(each.numel() for file in files for each in load_file(file).values())
    assert held == pytest.approx(expected / 2, abs=20)


@pytest.mark.parametrize("stage", [1, 3])
def test_a_checkpoint_of_two_ranks_goes_on_in_one_plain_process(
    config: RunConfig, said: list[Any], stage: int
) -> None:
    [path] = [p for p in next(each[1] for each in said if each[0] == stage)["saved"] if "/one/" in p]
    before = read_checkpoint(Path(path)).tensors
    assert {name.split("/")[0] for name in before} == {"value", "first", "second"}
    after = read_checkpoint(Path(resaved(config, Path(path).parents[2]))).tensors
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_checkpoint_of_a_plain_process_goes_on_in_two_ranks(
    said: list[Any], plain: tuple[Path, dict[str, Any]]
) -> None:
    after = read_checkpoint(Path(next(each[1] for each in said if each[0] == "resaved"))).tensors
    before = plain[1]["tensors"]
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_adapter_trained_at_stage_3_has_no_empty_tensor(
    said: list[Any], plain: tuple[Path, dict[str, Any]]
) -> None:
    assert said
    [ours] = (plain[0] / "zero-3" / "one" / "adapter").glob("*.safetensors")
    [theirs] = (plain[0] / "plain" / "one" / "adapter").glob("*.safetensors")
    found, expected = load_file(ours), load_file(theirs)
    assert {name: each.shape for name, each in found.items()} == {n: e.shape for n, e in expected.items()}
    assert all(each.numel() for each in found.values())


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_json_of_a_slot_says_what_its_run_says(config: RunConfig, stage: int) -> None:
    run = with_engine(slots(config)["one"], zero=stage, ranks=2, offload="optimizer")
    made = slot_json(run, 100)
    assert made["zero_optimization"]["stage"] == min(stage, 2)
    assert made["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    assert (made["train_batch_size"], made["train_micro_batch_size_per_gpu"]) == (8, 4)
    assert made["gradient_clipping"] == 0.5
    assert slot_json(slots(run)["other"], 100)["gradient_clipping"] == 0.0


def test_json_of_the_base_says_what_its_run_says(config: RunConfig) -> None:
    made = base_json(with_engine(config, zero=3, offload="base"), 32)
    assert made["zero_optimization"]["offload_param"]["device"] == "cpu"
    assert made["bf16"] == {"enabled": False}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gradient_clipping": 9.0}, r"gradient_clipping: 0\.5 -> 9\.0"),
        ({"zero_optimization": {"stage": 1}}, r"zero_optimization\.reduce_bucket_size: \d+ -> 500000000"),
    ],
)
def test_a_deepspeed_that_takes_another_configuration_is_refused(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any, words: str
) -> None:
    made = engine._initialized
    monkeypatch.setattr(
        engine, "_initialized", lambda module, client, wanted: made(module, client, {**wanted, **change})
    )
    with pytest.raises(MachineError, match=words):
        trained(with_engine(config, zero=1), tmp_path)


def test_a_killed_rank_ends_the_run_and_is_named(config: RunConfig, tmp_path: Path) -> None:
    heard: list[Any] = []
    started = time.monotonic()
    with pytest.raises(RunFailedError, match="rank 1 of 2 ended with signal 9"):
        run_ranks(dying, with_engine(config, ranks=2), tmp_path, False, heard.append)
    assert heard == ["ready"]
    assert time.monotonic() - started < 60


def test_a_pack_for_more_ranks_than_there_are_is_refused(config: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"engine\.ranks must be 1"):
        trained(with_engine(config, ranks=2), tmp_path)


def test_a_rank_never_holds_more_than_its_share_and_one_tensor(config: RunConfig, tmp_path: Path) -> None:
    sizes = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 6, "vocab_size": 8000}
    save_tiny_llama(tmp_path / "llama", **sizes)
    files = (tmp_path / "llama").glob("*.safetensors")
    tensors = [each.numel() * each.element_size() for file in files for each in load_file(file).values()]
    backbone = config.backbone.model_copy(update={"name": f"hf/{tmp_path / 'llama'}"})
    run = with_engine(config.model_copy(update={"backbone": backbone}), ranks=2, zero=3)
    heard: list[Any] = []
    run_ranks(loading, run, tmp_path, False, heard.append)
    [(grown, most, _)] = heard
    slack = 12 * 2**20  # the tree of modules and the allocator's own
    assert sum(tensors) > 80 * 2**20
    assert grown < sum(tensors) / 2 + slack
    assert most < sum(tensors) / 2 + max(tensors) + slack
