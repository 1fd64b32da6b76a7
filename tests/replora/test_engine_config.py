"""What the section `engine` may ask for."""

from __future__ import annotations

import pytest

from replora.check import engine_faults
from replora.config import RunConfig
from replora.errors import ConfigError
from replora.load import load_run, run_from, valid_keys
from replora.reading.compose import find_run


@pytest.mark.parametrize(
    ("run", "field", "words"),
    [
        ({"engine": {"ranks": 2}}, "ranks", "engine.ranks times train.micro_batch must divide train.batch"),
        ({"engine": {"zero": 1}, "train": {"precision": "fp64"}}, "zero", "must be 0 where train.precision"),
        ({"engine": {"zero": 3}, "method": {"name": "full"}}, "zero", "at most 2 for the method full"),
        ({"engine": {"recompute": True}, "method": {"name": "full"}}, "recompute", "must be false"),
        ({"engine": {"offload": "optimizer"}}, "offload", "needs engine.zero of at least 1, but got 0"),
        ({"engine": {"offload": "base", "zero": 2}}, "offload", "needs engine.zero of at least 3, but got 2"),
    ],
)
def test_what_cannot_be_is_said_at_its_key(run: dict[str, object], field: str, words: str) -> None:
    [fault] = engine_faults(RunConfig.model_validate(run))
    assert fault.keys == ("engine", field)
    assert words in fault.text


def test_ranks_that_share_the_micro_batches_evenly_are_fine() -> None:
    run = {"engine": {"ranks": 2, "zero": 3}, "train": {"batch": 8, "micro_batch": 2}}
    assert list(engine_faults(RunConfig.model_validate(run))) == []


def test_the_fault_of_a_file_names_what_would_fit() -> None:
    with pytest.raises(ConfigError, match=r"Set train\.micro_batch to 8"):
        load_run(find_run("vit-digits-digits-lora"), ["engine.ranks=2"])


def test_a_sweep_cannot_vary_the_engine() -> None:
    assert not [key for key in valid_keys(RunConfig()) if key.startswith("engine")]


def test_a_point_keeps_the_engine_of_its_base() -> None:
    base = RunConfig.model_validate({"engine": {"zero": 2}})
    assert run_from(base, {"optim.lr": 0.01}).engine == base.engine
