"""Whatever a file or an override holds, the answer is a configuration or a ConfigError."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from replora.config import RunConfig
from replora.errors import ConfigError
from replora.load import load, load_run, run_from, valid_keys
from sweeps.config import SweepConfig

KEYS = [
    *valid_keys(RunConfig()),
    "method",
    "task",
    "extends",
    "run",
    "space",
    "name",
    "seed.x",
    "space.optim.lr",
]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        ["lora", "replora", "image_folder", "digits", "vit-b16", "run.yaml", "1e-3", "yes", "\ud800"]
    ),
)
VALUES = st.recursive(
    SCALARS,
    lambda below: (
        st.lists(below, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), below)
    ),
    max_leaves=8,
)
FUZZ = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def answer(model: type[BaseModel], path: Path, overrides: list[str]) -> None:
    """Loads; anything but a model or a ConfigError with a message that can be printed is a failure."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            config = load_run(path, overrides) if model is RunConfig else load(model, path, overrides)
        except ConfigError as error:
            assert str(error).encode("utf-8")  # noqa: PT017
        else:
            assert isinstance(config, model)


@pytest.mark.parametrize("model", [RunConfig, SweepConfig])
@FUZZ
@given(
    content=st.binary(max_size=80) | st.text(max_size=80).map(lambda text: text.encode("utf-8", "replace"))
)
@example(content=b"? {a: b}\n: c")
@example(content=b"a: !!binary x")
@example(content=b"- \xe2\x80\xa8")
@example(content=b"<<: {seed: 1}")
@example(content=b"a: 2020-01-01\nb: 1:30\nc: 0x10\nd: 1_000")
def test_any_bytes_give_a_configuration_or_a_config_error(
    tmp_path: Path, content: bytes, model: type[BaseModel]
) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    answer(model, path, [])


@pytest.mark.parametrize("model", [RunConfig, SweepConfig])
@FUZZ
@given(
    data=st.dictionaries(st.sampled_from([*KEYS, *RunConfig.model_fields, *SweepConfig.model_fields]), VALUES)
)
@example(data={"extends": "run.yaml"})
@example(data={"extends": "x" * 5000 + ".yaml"})
@example(data={"extends": "\0.yaml"})
@example(data={"extends": "..yaml"})
@example(data={"run": {"extends": ["x"]}})
@example(data={"run": 3})
@example(data={"method": {"name": None}})
@example(data={"method": {"name": "lora", "lora": {"rank": 1}}})
@example(data={"space": {"optim.lr": {"values": [float("nan")]}}})
def test_any_yaml_gives_a_configuration_or_a_config_error(
    tmp_path: Path, data: dict[str, object], model: type[BaseModel]
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.dump(data), encoding="utf-8")
    answer(model, path, [])


@pytest.mark.parametrize("model", [RunConfig, SweepConfig])
@FUZZ
@given(
    overrides=st.lists(
        st.text(max_size=20)
        | st.builds(lambda key, text: f"{key}={text}", st.sampled_from(KEYS), st.text(max_size=10)),
        max_size=3,
    )
)
@example(overrides=["method.name.x=1"])
@example(overrides=["method=[", "seed=\udc80"])
@example(overrides=["=1", "a..b=1", "seed=", "seed=: :"])
def test_any_override_gives_a_configuration_or_a_config_error(
    tmp_path: Path, overrides: list[str], model: type[BaseModel]
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "name: s\nspace: {optim.lr: {values: [1]}}\n" if model is SweepConfig else "", encoding="utf-8"
    )
    answer(model, path, overrides)


@FUZZ
@given(point=st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=8), SCALARS, max_size=4))
def test_any_point_gives_a_run_or_a_config_error(point: dict[str, bool | int | float | str | None]) -> None:
    try:
        config = run_from(RunConfig(), point)
    except ConfigError as error:
        assert str(error).encode("utf-8")  # noqa: PT017
    else:
        assert isinstance(config, RunConfig)
