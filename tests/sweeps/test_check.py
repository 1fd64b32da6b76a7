from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from replora.errors import ConfigError
from replora.load import load
from sweeps.check import check_sweep, idle_settings, sweep_faults
from sweeps.commands import SPACES
from sweeps.config import SweepConfig
from tests.sweeps.simulated import grid, sweep


def faults(config: SweepConfig) -> str:
    return "\n".join(f"{fault.text} {fault.hint}" for fault in sweep_faults(config))


def test_every_fault_of_a_file_is_told_at_its_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(
        "name: bad\n"
        "space:\n"
        "  optim.lr: {log_uniform: [0, 0.1]}\n"
        "  optim.weight_decy: {values: [0.1, 0.2]}\n"
        "  method.rank: {values: [8, a]}\n"
        "  method.alpha: {uniform: [3, 1]}\n"
        "  seed: {values: [1]}\n"
        "search: {name: random, trials: 3}\n"
        "seeds: [0, 0]\n"
        "confirm: {top: 2}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load(SweepConfig, path, (), sweep_faults)
    found = [line for line in str(caught.value).splitlines() if f"{path}:" in line]
    assert [line.split(":")[1] for line in found] == ["3", "4", "5", "6", "7", "9", "10"]


def test_a_method_beside_another_has_its_own_defaults() -> None:
    config = SweepConfig.model_validate(
        {"name": "made", "space": {"method.name": {"values": ["replora", "lora", "dora"]}}}
    )
    assert not faults(config)  # dora's composition is not the additive one of the base


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"optim.weight_decy": {"values": (0.1,)}}, "Did you mean optim.weight_decay?"),
        ({"method.rank": {"values": ("a",)}}, "method.rank must be an integer, but got 'a'"),
        ({"method.rank": {"values": (8, 400)}}, "must be at most 64, the width of query, but got 400"),
        ({"optim.lr": {"uniform": (1e-3, 1e-2)}}, "must list its values in a grid, but got uniform"),
        ({"optim.lr": {"values": (0.1, 0.1)}}, "must not repeat a value, but 0.1 comes twice"),
        ({"optim.lr": {}}, "must have exactly one of values, uniform"),
        ({"optim.lr": {"values": (0.1,), "uniform": (1, 2)}}, "but got values, uniform"),
        ({"optim": {"values": ("a",)}}, "space.optim is a section"),
        ({"seed": {"values": (1,)}}, "space.seed is not allowed"),
        ({"task.name": {"values": ("digits",)}}, "values of different tasks cannot be compared"),
        ({"method.name": {"values": ("lora", "loar")}}, "Did you mean lora?"),
        (
            {"method.name": {"values": ("lora", "replora")}, "method.hidden": {"values": (8,)}},
            "method.hidden is not a field of the lora method. Only replora, doran",
        ),
        ({"method.hidden": {"values": (8,), "when": {"method.name": ("lora",)}}}, "is never met"),
        ({"method.hidden": {"values": (8,), "when": {"methd.name": ("lora",)}}}, "Did you mean method.name?"),
        ({"method.hidden": {"values": (8,), "when": {"method.hidden": (8,)}}}, "cannot be its own condition"),
        (
            {
                "method.hidden": {"values": (8,), "when": {"method.rank": (8,)}},
                "method.rank": {"values": (8,), "when": {"method.hidden": (8,)}},
            },
            "wait for one another",
        ),
        (
            {"train.batch": {"values": (12, 16)}, "train.micro_batch": {"values": (4, 3)}},
            "the grid's point train.batch=16, train.micro_batch=3 is no valid run",
        ),
    ],
)
def test_a_faulty_space_is_refused_in_words(space: dict[str, Any], words: str) -> None:
    assert words in faults(grid(space=space))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"space": {"optim.lr": {"log_uniform": (0.0, 1.0)}}}, "must begin above 0"),
        ({"space": {"method.rank": {"log_integers": (0, 8)}}}, "must begin at 1 or above"),
        ({"space": {"method.rank": {"integers": (9, 8)}}}, "[low, high], but got 9 above 8"),
        ({"space": {"method.rank": {"uniform": (2, 8)}}}, "method.rank must be an integer"),
        ({"seeds": (-1,)}, "seeds[0] must be in 0 to 2147483647, but got -1"),
        ({"confirm": {"top": 2}}, "confirm.seeds is needed"),
        ({"confirm": {"seeds": (5,)}}, "confirm.top must be at least 1"),
        ({"objective": {"metric": "acuracy"}}, "but got 'acuracy'. Did you mean accuracy?"),
        ({"pruner": {"grace_steps": 50}}, "pruner.grace_steps does nothing without pruner.name"),
        ({"tracking": {"uri": "http://me:s3cret@host"}}, "tracking.uri for host holds a password"),
        ({"tracking": {"uri": "./mlruns"}}, "must be a database or a server, but got './mlruns'"),
        (
            {"search": {"name": "optuna", "trials": 3, "max_parameters": 10}},
            "must be at least 16,784, the fewest of any point of the space, but got 10",
        ),
        ({"pruner": {"name": "asha", "grace_steps": 200}}, "could stop no trial"),
        ({"search": {"name": "optuna", "trials": 3, "first": ({"optim.lr": 1e-2},)}}, "lacks method.rank"),
        (
            {"search": {"name": "optuna", "trials": 3, "first": ({"optim.lr": 2.0, "method.rank": 8},)}},
            "sets optim.lr to 2.0, which is outside its domain",
        ),
    ],
)
def test_a_faulty_sweep_is_refused_in_words(changes: dict[str, Any], words: str) -> None:
    assert words in faults(sweep(**changes))


def test_a_setting_of_a_search_without_a_name_is_a_fault_and_of_another_search_a_note() -> None:
    config = grid(search={"sampler": "gp"})
    assert "search.sampler does nothing without search.name: optuna" in faults(config)
    config = sweep(search={"name": "random", "trials": 3, "sampler": "gp"})
    assert faults(config) == ""
    assert list(idle_settings(config)) == [
        "search.sampler does nothing with search.name: random; it is of optuna."
    ]


def test_a_bare_list_as_a_domain_says_how_to_write_it(tmp_path: Path) -> None:
    path = tmp_path / "bare.yaml"
    path.write_text("name: bare\nspace:\n  optim.lr: [0.1, 0.2]\n")
    with pytest.raises(ConfigError, match=r"For example {values: \[4, 8\]}"):
        load(SweepConfig, path, (), sweep_faults)


def test_a_password_in_an_override_is_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "one.yaml"
    path.write_text("name: one\nspace: {optim.lr: {values: [0.1]}}\n")
    for override in ("tracking.uri=http://me:s3cret@host:50", "tracking.uri=[http://me:s3cret@host:50]"):
        with pytest.raises(ConfigError) as caught:
            load(SweepConfig, path, [override], sweep_faults)
        assert "s3cret" not in str(caught.value)


def test_what_only_some_draws_violate_is_no_fault_of_a_random_search() -> None:
    space = {"train.batch": {"values": (12, 24)}, "train.micro_batch": {"values": (3, 4)}}
    assert faults(sweep(space=space, search={"name": "random", "trials": 3})) == ""


def test_one_faulty_key_does_not_hide_another() -> None:
    found = faults(grid(space={"optim.lr": {"uniform": (3, 1)}, "method.rnk": {"values": (8,)}}))
    assert "3.0 above 1.0" in found
    assert "method.rnk" in found


def test_a_grid_without_end_is_refused_before_it_is_listed() -> None:
    space = {
        f"optim.{key}": {"values": tuple(i / 100 for i in range(1, 60))} for key in ("lr", "eps", "beta1")
    }
    assert "more than 100,000 points" in faults(grid(space=space))


def test_missing_images_are_a_fault_of_the_sweep(tmp_path: Path) -> None:
    run = {
        "backbone": {"name": "timm/vit_tiny_patch16_224"},
        "task": {"name": "image-folder", "root": tmp_path / "no"},
    }
    assert "is not a folder" in faults(grid(run=run))


def test_a_sweep_made_in_a_program_is_refused_with_the_same_words() -> None:
    with pytest.raises(
        ConfigError, match=r"the sweep simulated(.|\n)*optim.weight_decy is not a field of optim"
    ):
        check_sweep(grid(space={"optim.weight_decy": {"values": (0.1,)}}))


@pytest.mark.parametrize("path", sorted(SPACES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_sweeps_of_the_package_are_valid(path: Path) -> None:
    assert load(SweepConfig, path, (), sweep_faults).name == path.stem
