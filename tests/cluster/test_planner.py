"""Plans: known numbers, what never gets worse, what is chosen, and what is said where nothing fits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.activations import evaluation_bytes
from cluster.anatomy import Anatomy, anatomy_of
from cluster.hardware import Hardware, load_hardware, profile_names
from cluster.memory import GIB, Setting, memory_of
from cluster.planner import Pins, Plan, engine_of, plan
from cluster.planning import plan_document, plan_text
from replora.check import engine_faults
from replora.config import (
    DoraMethod,
    FullMethod,
    LinearProbeMethod,
    LoraMethod,
    MethodConfig,
    ReploraMethod,
    RunConfig,
)
from replora.errors import ConfigError, PlanError
from replora.load import load_run
from replora.reading.compose import find_run
from tests.cluster.anatomies import LLAMA_7B, LLAMA_13B

ROOT = Path(__file__).parents[2]
FIVE = ("query", "key", "value", "up", "down")
#: The published recipe's targets, with RepLoRA on query and value, without dropout.
RECIPE = ReploraMethod(rank=32, hidden=64, alpha=64, plain_targets=("key", "up", "down"))


def run(method: MethodConfig = RECIPE, **train: Any) -> RunConfig:
    """A run in bf16."""
    return RunConfig.model_validate({"method": method, "train": {"precision": "bf16", "batch": 16, **train}})


def plan_13b(hardware: str, slots: int | None = 1, **pins: Any) -> Plan:
    """A plan of the 13B recipe at 256 tokens an example."""
    return plan(run(), load_hardware(hardware), slots, tokens=256, pins=Pins(**pins), anatomy=LLAMA_13B)


@pytest.mark.parametrize(("anatomy", "count"), [(LLAMA_7B, 6_738_415_616), (LLAMA_13B, 13_015_864_320)])
def test_llama_has_the_known_number_of_parameters(anatomy: Anatomy, count: int) -> None:
    assert anatomy.base_parameters == count


@pytest.mark.parametrize(("recompute", "gib"), [(True, 29.8), (False, 59.9)])
def test_13b_at_4096_tokens_needs_the_known_memory(recompute: bool, gib: float) -> None:
    setting = Setting(micro_batch=1, tokens=4_096, recompute=recompute)
    memory = memory_of(run(), LLAMA_13B, setting)
    # Known: the same formula with 16 bytes for each of P / 100 trained parameters.
    assert memory.model / GIB == pytest.approx(gib, rel=0.02)


@pytest.mark.parametrize(("ranks", "bytes_each"), [(1, 28), (2, 22)])
def test_zero_1_and_2_hold_what_was_measured_of_each_number_that_trains(ranks: int, bytes_each: int) -> None:
    config = run(LoraMethod(rank=32, targets=FIVE), precision="fp32")
    for stage in (1, 2):
        memory = memory_of(config, LLAMA_13B, Setting(1, 8, 1, stage, ranks))
        state = memory.adapters + memory.gradients + memory.optimizer + memory.masters
        assert state == bytes_each * 87_818_240


def test_zero_3_shares_the_base() -> None:
    memory = memory_of(run(LoraMethod(rank=32, targets=FIVE)), LLAMA_13B, Setting(1, 8, 1, 3, 8))
    assert memory.base == 2 * 13_015_864_320 // 8


def test_ranks_share_the_examples_of_an_evaluation() -> None:
    config = load_run(find_run("llama-13b-commonsense-replora"))
    alone, shared = (evaluation_bytes(config, LLAMA_13B, 1, ranks) for ranks in (1, 4))
    assert alone == pytest.approx(4 * shared, rel=0.1)


SETTINGS = st.builds(
    Setting,
    micro_batch=st.integers(1, 32),
    tokens=st.integers(1, 4_096),
    slots=st.integers(1, 8),
    stage=st.sampled_from([0, 1, 2, 3]),
    ranks=st.sampled_from([1, 2, 4, 8]),
    recompute=st.booleans(),
    offload=st.sampled_from(["none", "optimizer"]),
)
METHODS = st.sampled_from(
    [RECIPE, LoraMethod(), LoraMethod(dropout=0.1, targets=FIVE), FullMethod(), LinearProbeMethod()]
)


def total(method: MethodConfig, setting: Setting, **changes: Any) -> int:
    """Bytes on a GPU of 7B with some fields of the setting changed."""
    return memory_of(run(method), LLAMA_7B, Setting(**{**vars(setting), **changes})).total


@given(METHODS, SETTINGS)
def test_more_gpus_never_need_more_memory_each_under_zero_3(method: MethodConfig, setting: Setting) -> None:
    needed = [total(method, setting, stage=3, ranks=ranks) for ranks in (1, 2, 4, 8, 16)]
    assert needed == sorted(needed, reverse=True)


@given(METHODS, SETTINGS)
def test_recomputation_never_needs_more(method: MethodConfig, setting: Setting) -> None:
    assert total(method, setting, recompute=True) <= total(method, setting, recompute=False)


@given(METHODS, SETTINGS)
def test_more_slots_need_more(method: MethodConfig, setting: Setting) -> None:
    assert total(method, setting, slots=setting.slots + 1) > total(method, setting)


@given(METHODS, SETTINGS)
def test_a_higher_stage_of_zero_holds_less_state(method: MethodConfig, setting: Setting) -> None:
    states = []
    for stage in (1, 2, 3):
        memory = memory_of(run(method), LLAMA_7B, Setting(**{**vars(setting), "stage": stage}))
        states.append(memory.base + memory.adapters + memory.gradients + memory.optimizer + memory.masters)
    assert states == sorted(states, reverse=True)


@given(METHODS, SETTINGS)
def test_offload_moves_bytes_and_loses_none(method: MethodConfig, setting: Setting) -> None:
    here = memory_of(run(method), LLAMA_7B, Setting(**{**vars(setting), "stage": 2, "offload": "none"}))
    away = memory_of(run(method), LLAMA_7B, Setting(**{**vars(setting), "stage": 2, "offload": "optimizer"}))
    moved = here.optimizer + here.masters
    assert away.host == moved
    assert here.model - away.model == moved


@pytest.mark.parametrize("name", ["8xh100", "8xa100-80"])
def test_13b_takes_one_80_gb_gpu_for_each_trial_without_zero(name: str) -> None:
    found = plan_13b(name)
    assert (found.chosen.setting.stage, found.chosen.setting.ranks, found.trials_at_once) == (0, 1, 8)


def test_13b_on_24_gb_cards_is_sharded_over_them() -> None:
    setting = plan_13b("4xa10g").chosen.setting
    assert setting.stage == 3
    assert setting.ranks > 1


def test_13b_on_one_24_gb_card_puts_the_base_into_the_hosts_memory() -> None:
    found = plan_13b("1x24gb")
    assert (found.chosen.setting.stage, found.chosen.setting.offload) == (3, "base")
    assert found.chosen.memory.host > 24 * GIB


@pytest.mark.parametrize("name", [name for name in profile_names() if name != "cpu"])
def test_a_chosen_setting_fits_and_no_earlier_one_does(name: str) -> None:
    found = plan_13b(name)
    assert found.chosen.memory.total <= found.hardware.place_gib * GIB
    earlier = found.considered[: found.considered.index(found.chosen)]
    assert not any(candidate.fits for candidate in earlier)


@pytest.mark.parametrize("method", [RECIPE, DoraMethod(), FullMethod()], ids=lambda method: method.name)
@pytest.mark.parametrize("name", profile_names())
def test_nothing_is_planned_that_the_engine_refuses(name: str, method: MethodConfig) -> None:
    config = run(method)
    try:
        found = plan(config, load_hardware(name), None, tokens=256, anatomy=LLAMA_7B)
    except PlanError:
        return  # where nothing fits nothing is advised
    for setting in (each.setting for each in found.considered):
        train = {**config.train.model_dump(), "micro_batch": setting.micro_batch}
        trained = {**config.model_dump(), "train": train, "engine": engine_of(setting)}
        assert not list(engine_faults(RunConfig.model_validate(trained)))


def test_a_stage_that_the_engine_refuses_is_refused_in_its_words() -> None:
    with pytest.raises(PlanError, match="at most 2 for the method full"):
        plan(run(FullMethod()), load_hardware("8xh100"), 1, tokens=8, pins=Pins(stage=3), anatomy=LLAMA_7B)


def test_a_smaller_batch_of_evaluations_that_makes_room_is_told() -> None:
    config = load_run(find_run("llama-13b-commonsense-replora"))
    found = plan(config, load_hardware("8xa100-40"))
    assert found.easier is not None
    size, better = found.easier
    assert (found.chosen.setting.ranks, better.setting.ranks) == (2, 1)
    taken = plan(
        load_run(find_run("llama-13b-commonsense-replora"), [f"task.eval_batch={size}"]),
        load_hardware("8xa100-40"),
    )
    assert taken.chosen == better
    assert f"With task.eval_batch={size}" in plan_text(config, found)


def test_micro_batches_and_gpus_divide_the_batch() -> None:
    config = run(batch=12)
    for candidate in plan(config, load_hardware("8xa100-40"), tokens=512, anatomy=LLAMA_13B).considered:
        assert 12 % (candidate.setting.micro_batch * candidate.setting.ranks) == 0


def test_a_pack_grows_until_a_pass_fills_the_device() -> None:
    slots = [
        plan(
            run(batch=1), load_hardware("8xh100"), None, tokens=tokens, anatomy=LLAMA_7B
        ).chosen.setting.slots
        for tokens in (128, 1_024, 4_096)
    ]
    assert slots == [8, 4, 1]


def test_a_refusal_says_what_is_needed_what_there_is_and_what_would_do() -> None:
    with pytest.raises(PlanError) as caught:
        plan_13b("8xa100-40", micro_batch=16, recompute=False, stage=0)
    text = str(caught.value)
    assert "GiB on a GPU with 39.4 GiB (activations" in text
    assert "Leave the micro-batch open (micro-batch 4), or leave the recomputation open" in text


def test_every_remedy_of_a_refusal_fits_when_it_is_taken() -> None:
    pins: dict[str, Any] = {"micro_batch": 16, "recompute": False}
    hardware = load_hardware("1x24gb")
    with pytest.raises(PlanError, match="recomputation open"):
        plan(run(), hardware, tokens=512, pins=Pins(**pins, stage=0), anatomy=LLAMA_7B)
    taken = plan(run(), hardware, tokens=512, pins=Pins(micro_batch=16, stage=0), anatomy=LLAMA_7B)
    assert taken.chosen.setting.recompute


def test_where_nothing_helps_the_refusal_names_other_hardware() -> None:
    tiny = Hardware.model_validate(
        {
            "name": "tiny",
            "summary": "a card of 1 GiB",
            "gpus": 1,
            "memory_gib": {"value": 1, "mark": "choice", "source": "made for this test"},
            "host_memory_gib": {"value": 8, "mark": "choice", "source": "made for this test"},
        }
    )
    with pytest.raises(PlanError, match="GPUs with more memory"):
        plan(run(), tiny, tokens=512, anatomy=LLAMA_13B)


def test_open_lengths_of_examples_are_asked_for() -> None:
    with pytest.raises(PlanError, match="--tokens"):
        plan(run(), load_hardware("8xh100"), anatomy=LLAMA_13B)


def test_examples_without_tokens_are_refused() -> None:
    with pytest.raises(PlanError, match="tokens must be at least 1, but got -5"):
        plan(run(), load_hardware("8xh100"), tokens=-5, anatomy=LLAMA_13B)


def test_a_backbone_of_unknown_sizes_is_refused() -> None:
    config = RunConfig.model_validate({"backbone": {"name": "timm/vit_base_patch16_clip_224"}})
    with pytest.raises(PlanError, match="without building it"):
        plan(config, load_hardware("cpu"))


def test_a_layout_that_cannot_be_is_refused() -> None:
    with pytest.raises(PlanError, match=r"must divide train\.batch"):
        plan_13b("8xh100", ranks=3)


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_plans_the_digits(name: str) -> None:
    found = plan(RunConfig(), load_hardware(name), None)
    assert found.chosen.setting.stage == 0
    assert found.anatomy == anatomy_of(RunConfig())


@pytest.mark.parametrize("name", profile_names())
def test_every_number_of_a_profile_has_an_origin(name: str) -> None:
    hardware = load_hardware(name)
    assert hardware.name == name
    figures = [hardware.memory_gib, hardware.host_memory_gib, hardware.link_gb_s]
    assert all(figure.source and figure.mark for figure in figures if figure is not None)


def test_an_unknown_profile_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 8xh100"):
        load_hardware("8xh10")


def test_the_document_adds_up_and_the_text_names_the_choice() -> None:
    found = plan_13b("8xh100")
    document = plan_document(run(), found)
    assert sum(document["parts_gib"].values()) == pytest.approx(document["needed_gib"], abs=0.02)
    assert "Chosen: no ZeRO" in plan_text(run(), found)
    json.dumps(document)


def test_zero_2_that_is_asked_for_is_said_to_save_nothing() -> None:
    found = plan_13b("8xa100-40", stage=2)
    assert "ZeRO-2 saves no memory here: no ZeRO over 2 GPUs needs" in plan_text(run(), found)


def test_planning_needs_neither_torch_nor_ray() -> None:
    code = (
        "import sys; from cluster.commands import VERBS; import argparse; parser = argparse.ArgumentParser();"
        "verb = VERBS[0]; verb.configure(parser);"
        "verb.run(parser.parse_args(['vit-digits-digits-replora', '--hardware', '8xh100']));"
        "assert {'torch', 'ray', 'mlflow', 'optuna'}.isdisjoint(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_known_llamas_are_planned_by_their_names() -> None:
    for name, anatomy in (("llama-7b", LLAMA_7B), ("llama-13b", LLAMA_13B)):
        config = RunConfig.model_validate(
            {"backbone": {"name": name}, "task": {"name": "commonsense", "root": "/data", "cutoff": 256}}
        )
        found = anatomy_of(config)
        assert list(found.targets) == list(anatomy.targets)
        assert vars(found) == {**vars(anatomy), "tokens": 256, "targets": found.targets}


@pytest.mark.parametrize("name", profile_names())
def test_what_the_text_says_to_set_makes_a_valid_run(name: str) -> None:
    recipe = find_run("llama-13b-commonsense-replora")
    try:
        found = plan(load_run(recipe), load_hardware(name))
    except PlanError:
        assert name == "cpu", "13B fits every profile with GPUs"
        return
    said = [line for line in plan_text(load_run(recipe), found).splitlines() if line.startswith("To train")]
    run = load_run(recipe, said[0].partition(": ")[2].split() if said else [])
    assert run.train.micro_batch in (found.chosen.setting.micro_batch, None)
    assert run.engine.zero == found.chosen.setting.stage
    assert run.engine.recompute == found.chosen.setting.recompute
