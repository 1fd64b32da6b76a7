"""Fingerprints name a run: equal for equal runs on every machine, different for different ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from replora.config import EngineConfig, FullMethod, ImageFolderTask, LoraMethod, RunConfig
from replora.fingerprint import fingerprint, group_fingerprint
from replora.load import load_run, run_from, valid_keys
from replora.reading.compose import find_run

# Computed once from this project's own canonical form; a change here renames every recorded trial, so it
# needs a new replora.fingerprint.VERSION and a line under Numerics in the changelog.
GOLDEN = {
    "vit-digits-digits-lora": "24309fa335e9b24d",
    "vit-digits-digits-replora": "13acc655942491de",
}
CHANGES = {
    "backbone.name": "vit-s16",
    "backbone.weights": "random",
    "method.rank": 3,
    "method.alpha": 3.5,
    "method.dropout": 0.25,
    "method.targets": ["key"],
    "method.name": "lora",
    "method.composition": "noised",
    "method.tau": 0.5,
    "method.hidden": 9,
    "method.shared": False,
    "method.activation": "relu",
    "method.seed": "dense",
    "method.scope": "model",
    "method.zero_side": "A",
    "method.plain_targets": ["up"],
    "task.train_images": 50,
    "optim.lr": 0.5,
    "optim.weight_decay": 0.5,
    "optim.beta1": 0.5,
    "optim.beta2": 0.5,
    "optim.eps": 0.5,
    "optim.schedule": "linear",
    "optim.warmup_steps": 3,
    "optim.restarts": [50],
    "optim.phases": [{"from_step": 50, "lr": 0.5, "weight_decay": 0.0}],
    "optim.clip_norm": None,
    "train.steps": 3,
    "train.batch": 4,
    "train.micro_batch": 2,
    "train.eval_every": 3,
    "train.checkpoint_every": 3,
    "train.precision": "fp64",
    "seed": 1,
}


@pytest.mark.parametrize(("name", "expected"), GOLDEN.items())
def test_fingerprint_of_a_recipe_is_the_recorded_one(name: str, expected: str) -> None:
    assert fingerprint(load_run(find_run(name))) == expected


def test_fingerprint_is_the_same_in_another_process() -> None:
    code = "import replora.config as c, replora.fingerprint as f; print(f.fingerprint(c.RunConfig()))"
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "7"},
    )
    assert done.stdout.strip() == fingerprint(RunConfig())


def test_every_key_that_a_sweep_may_set_is_varied_here() -> None:
    other = {"task.name"}  # The other task has a field that must be given: tested below.
    assert set(valid_keys(RunConfig())) - other == set(CHANGES)


@pytest.mark.parametrize("key", CHANGES)
def test_every_key_changes_the_fingerprint(key: str) -> None:
    changed = run_from(RunConfig(), {key: CHANGES[key]})  # type: ignore[dict-item]
    assert fingerprint(changed) != fingerprint(RunConfig())


def test_integer_and_float_of_a_float_field_are_the_same_run() -> None:
    one, same = run_from(RunConfig(), {"optim.lr": 1}), run_from(RunConfig(), {"optim.lr": 1.0})
    assert fingerprint(one) == fingerprint(same)


def test_place_of_the_data_is_not_part_of_the_fingerprint() -> None:
    here, there = (RunConfig(task=ImageFolderTask(root=Path(root))) for root in ("a", "b"))
    assert fingerprint(here) == fingerprint(there)
    assert fingerprint(here) != fingerprint(RunConfig())


def test_methods_without_own_fields_differ_by_name() -> None:
    names = {fingerprint(RunConfig(method=FullMethod())), fingerprint(RunConfig(method=LoraMethod()))}
    assert len(names) == 2


def test_group_fingerprint_ignores_the_seed_and_nothing_else() -> None:
    base = RunConfig()
    assert group_fingerprint(run_from(base, {"seed": 5})) == group_fingerprint(base)
    others = {group_fingerprint(run_from(base, {key: CHANGES[key]})) for key in CHANGES if key != "seed"}  # type: ignore[dict-item]
    assert len(others) == len(CHANGES) - 1


def test_group_and_run_have_different_names() -> None:
    assert group_fingerprint(RunConfig()) != fingerprint(RunConfig())


@pytest.mark.parametrize("engine", [{"zero": 3, "ranks": 2}, {"offload": "optimizer"}, {"recompute": True}])
def test_engine_is_not_part_of_the_fingerprint(engine: dict[str, object]) -> None:
    assert fingerprint(RunConfig(engine=EngineConfig.model_validate(engine))) == fingerprint(RunConfig())
