"""The largest members of a space are found without building the others."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from cluster.anatomy import anatomy_of
from cluster.memory import Setting, memory_of
from replora.config import RunConfig
from replora.errors import ConfigError
from replora.load import run_from
from sweeps.config import SweepConfig
from sweeps.largest import contenders
from sweeps.space import Space


def sweep(space: dict[str, Any], **more: Any) -> SweepConfig:
    """A sweep over a space of plain values."""
    domains = {key: {"values": each} if isinstance(each, list) else each for key, each in space.items()}
    return SweepConfig.model_validate({"name": "made", "space": domains, **more})


def weight(run: RunConfig) -> int:
    """Bytes of one trial alone."""
    anatomy = anatomy_of(run)
    return memory_of(
        run, anatomy, Setting(run.train.micro_batch or run.train.batch, anatomy.tokens or 1)
    ).total


def members(config: SweepConfig) -> Iterator[RunConfig]:
    """Every valid run of a grid."""
    for point in Space(config).grid():
        try:
            yield run_from(config.run, point)
        except ConfigError:
            continue


ONLY_REPLORA = {"when": {"method.name": ["replora"]}}
SPACES: dict[str, dict[str, Any]] = {
    "numbers": {"optim.lr": [1e-4, 1e-3], "method.rank": [4, 16, 8], "method.dropout": [0.0, 0.1]},
    "methods": {
        "method.name": ["lora", "replora", "adapter", "prefix", "linear-probe", "full"],
        "method.rank": {"values": [4, 32], "when": {"method.name": ["lora", "replora"]}},
        "method.hidden": {"values": [16, 64], **ONLY_REPLORA},
        "train.batch": [8, 64],
    },
    "conditions": {
        "method.name": ["lora", "replora"],
        "method.shared": {"values": [True, False], **ONLY_REPLORA},
        "method.hidden": {"values": [8, 256], "when": {"method.shared": [True]}},
        "train.precision": ["fp32", "bf16", "fp64"],
    },
    "backbones": {"backbone.name": ["vit-digits", "vit-ti16", "vit-s16"], "method.rank": [8, 100, 300]},
    "invalid": {"train.batch": [9, 12, 16], "train.micro_batch": [5, 6, 9, 16]},
}


@pytest.mark.parametrize("name", SPACES)
def test_no_member_of_a_grid_is_larger(name: str) -> None:
    config = sweep(SPACES[name])
    assert max(weight(each.run) for each in contenders(config)) == max(map(weight, members(config)))


def test_a_large_grid_is_gone_through_in_a_moment() -> None:
    config = sweep(
        {
            "method.name": ["lora", "dora"],
            "method.rank": list(range(1, 51)),
            "train.batch": list(range(1, 11)),
            "optim.lr": [0.001 * n for n in range(1, 11)],
        }
    )
    began = time.process_time()
    found = contenders(config)
    assert [each.point for each in found] == [
        {"method.name": name, "method.rank": 50, "train.batch": 10} for name in ("lora", "dora")
    ]
    assert time.process_time() - began < 0.5


def test_a_range_counts_with_its_upper_bound_that_is_a_valid_run() -> None:
    config = sweep(
        {
            "method.rank": {"log_integers": [1, 64]},
            "train.batch": {"integers": [4, 31]},
            "train.micro_batch": [4],
            "optim.lr": {"log_uniform": [1e-5, 1e-2]},
        },
        search={"name": "optuna", "trials": 10},
    )
    [found] = contenders(config)
    assert found.words == "method.rank=64, train.batch=28, train.micro_batch=4"
