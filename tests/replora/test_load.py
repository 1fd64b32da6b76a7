"""Reading runs and sweeps: values, every fault in one message, composition, points, differences."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from replora.config import (
    AdapterMethod,
    DigitsTask,
    DoranMethod,
    ImageFolderTask,
    LoraMethod,
    PrefixMethod,
    ReploraMethod,
    RunConfig,
)
from replora.errors import ConfigError
from replora.load import diff, load, load_run, run_from, valid_keys
from replora.reading.compose import find_run, recipe_names
from replora.reading.faults import Fault
from replora.tasks import TASKS
from sweeps.config import SweepConfig

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes text to run.yaml and gives its path."""

    def _write(text: str) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return _write


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_run(path, overrides)
    return str(caught.value).replace(str(path), "run.yaml")


# --- values ----------------------------------------------------------------------------------------


def test_empty_file_is_the_default_run(write: Write) -> None:
    assert load_run(write("# nothing\n")) == RunConfig()


def test_number_with_exponent_and_no_dot_is_a_float(write: Write) -> None:
    assert load_run(write("optim: {lr: 1e-3}"), ["optim.weight_decay=5e-2"]).optim.lr == 1e-3


def test_override_value_may_be_a_list_or_null(write: Write) -> None:
    config = load_run(write(""), ["method.targets=[key, value]", "optim.clip_norm=null"])
    assert isinstance(config.method, ReploraMethod)
    assert config.method.targets == ("key", "value")
    assert config.optim.clip_norm is None


def test_section_may_be_written_as_its_name(write: Write) -> None:
    config = load_run(write("backbone: vit-b16\nmethod: lora\ntask: digits\n"))
    assert (config.backbone.name, config.method.name, config.task.name) == ("vit-b16", "lora", "digits")


def test_underscores_in_method_and_task_names_mean_hyphens(write: Write) -> None:
    config = load_run(write("method: linear_probe\ntask: {name: image_folder, root: photos}"))
    assert config.method.name == "linear-probe"
    assert config.task == ImageFolderTask(root=Path("photos"))


def test_fields_without_a_name_are_of_the_default_method(write: Write) -> None:
    assert load_run(write("method: {hidden: 32}")).method == ReploraMethod(hidden=32)


def test_last_override_of_a_key_wins(write: Write) -> None:
    assert load_run(write("seed: 1"), ["seed=2", "seed=3"]).seed == 3


def test_overrides_of_name_and_field_work_in_any_order(write: Write) -> None:
    overrides = ["method.rank=4", "method=lora"]
    expected = LoraMethod(rank=4)
    assert load_run(write(""), overrides).method == expected
    assert load_run(write(""), overrides[::-1]).method == expected


def test_changed_method_keeps_only_fields_that_both_have(write: Write) -> None:
    path = write("method: {name: replora, rank: 2, hidden: 64, targets: [key]}")
    assert load_run(path, ["method.name=lora"]).method == LoraMethod(rank=2, targets=("key",))


def test_a_point_with_another_method_has_the_defaults_of_that_method() -> None:
    """A default of the method that the point replaces is nobody's choice."""
    for method in (DoranMethod(), AdapterMethod(), PrefixMethod(made="mlp")):
        point = {"method.name": method.name, **({"method.made": "mlp"} if method.name == "prefix" else {})}
        assert run_from(RunConfig(), point).method == method
    chosen = RunConfig(method=ReploraMethod(rank=4, targets=("key",)))
    assert run_from(chosen, {"method.name": "lora"}).method == LoraMethod(rank=4, targets=("key",))


def test_hidden_below_rank_warns(write: Write) -> None:
    with pytest.warns(UserWarning, match=r"method.hidden = 4 is below method.rank = 8"):
        load_run(write("method: {hidden: 4}"))


# --- faults ----------------------------------------------------------------------------------------


def test_unknown_field_names_the_nearest_and_all_fields(write: Write) -> None:
    assert refusal(write("method:\n  name: lora\n  rnk: 4\n")) == (
        "run.yaml:3: method.rnk is not a field of the lora method.\n"
        "  Did you mean method.rank? Fields: alpha, dropout, name, rank, targets."
    )


def test_every_fault_comes_in_one_message_in_the_order_of_lines(write: Write) -> None:
    text = (
        "method:\n  name: replora\n  rank: 0\n  activation: gelo\n"
        "task: digts\n"
        "optim: {lr: -1e-3}\n"
        "train: {batch: 10, micro_batch: 3}\n"
        "seed: 1\nseed: 2\n"
    )
    assert refusal(write(text), "method.hidden=x", "nonsense") == (
        "run.yaml has 8 faults:\n"
        "  run.yaml:3: method.rank must be at least 1, but got 0.\n"
        "  run.yaml:4: method.activation must be 'gelu', 'relu', 'tanh' or 'identity', but got 'gelo'.\n"
        "    Did you mean gelu?\n"
        "  run.yaml:5: task.name must be a known name, but got 'digts'.\n"
        f"    Did you mean digits? Names: {', '.join(TASKS)}.\n"
        "  run.yaml:6: optim.lr must be greater than 0, but got -0.001.\n"
        "  run.yaml:7: train.micro_batch must divide train.batch, but got 3 and 10.\n"
        "  run.yaml:9: seed is given twice, in lines 8 and 9.\n"
        "  command line: override 'nonsense' must be key=value, "
        "for example optim.lr=1e-3 (key=null for no value).\n"
        "  override method.hidden='x': method.hidden must be an integer, but got 'x'."
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("method: repllora", "Did you mean replora? Names: replora, lora, dora, doran, "),
        ("rank: 4", "Did you mean method.rank?"),
        ("method.rank: 4", "Write rank inside the section method."),
        ("method: {name: lora, hidden: 4}", "Only replora, doran"),
        ("method: {rank: '8'}", "method.rank must be an integer, but got '8'"),
        ("method: {rank: true}", "method.rank must be an integer, but got true"),
        ("method: {shared: yes}", "method.shared must be true or false, but got 'yes'"),
        ("method: {targets: query}", "method.targets must be a list, but got 'query'"),
        ("method: {targets: []}", "method.targets must have at least 1 item, but got []"),
        ("optim: {lr: .nan}", "optim.lr must be a finite number"),
        ("task: image-folder", "task.root is missing: the image-folder task needs it"),
        ("task: {name: 3}", "task.name must be a known name, but got 3"),
        ("optim: 3", "optim must be a section (a mapping of fields), but got 3"),
        ("[1, 2]", "the file must hold sections (a mapping of fields), but got [1, 2]"),
        ("backbone: vit-b61", "Did you mean vit-b16?"),
        ("method: {targets: [qery]}", "Did you mean query? Targets: query, key, value, output, up, down."),
        ("method: {rank: 65, hidden: 65}", "method.rank must be at most 64, the width of query, but got 65"),
        ("method: {plain_targets: [query]}", "must not repeat method.targets, but both have query"),
        ("method: {targets: [query, query]}", "names 'query' more than once"),
        ("a: &x 1\nb: *x", "aliases (*x) are not allowed here; write the value out"),
        ("seed: !!python/name:os.system x", "has the tag 'tag:yaml.org,2002:python/name:os.system'"),
        ("seed: !!int x", "seed is not a valid int: 'x'"),
        ("? [a]\n: 1", "needs a field's name in line 1, but got a list or a mapping"),
        ("a: [", "not valid YAML"),
        ("a: 1\n--- \nb: 1", "not valid YAML"),
        ('"\\ud800": 1', "is not valid Unicode text"),
        ("a: " + "[" * 5000, "nested too deeply"),
        ("a: " + "[" * 30 + "]" * 30, "is nested too deeply"),
        (f"seed: {'9' * 5000}", "is not a valid int"),
        ("space: {}\nrun: {}", "is a sweep, not a run"),
    ],
)
def test_fault_says_what_is_wrong_and_what_to_do(write: Write, text: str, message: str) -> None:
    assert message in refusal(write(text))


def test_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.yaml cannot be read: No such file or directory"):
        load_run(tmp_path / "none.yaml")


def test_file_that_is_not_utf8_says_where(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(b"seed: \xff")
    with pytest.raises(ConfigError, match=r"is not UTF-8 text \(byte 6\)"):
        load_run(path)


def test_check_of_the_caller_is_placed_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("name: s\nspace:\n  optim.lr:\n    values: [1]\n")
    fault = Fault(("space", "optim.lr", "values"), "space.optim.lr is odd.")
    with pytest.raises(ConfigError, match=r"sweep.yaml:4: space.optim.lr is odd."):
        load(SweepConfig, path, check=lambda config: [fault])


def test_value_that_fits_no_member_of_a_union_is_one_fault(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("name: s\nspace:\n  optim.lr: {values: [0.1, [1]]}\n")
    with pytest.raises(ConfigError) as caught:
        load(SweepConfig, path)
    assert str(caught.value) == (
        f"{path}:3: space.optim.lr.values[1] must be true or false or an integer or a number or text, "
        "but got [1]."
    )


def test_override_reaches_a_key_that_holds_dots(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("name: s\nspace:\n  optim.lr: {values: [0.1]}\n")
    overrides = ["space.optim.lr.values=[0.2]", "space.method.rank.values=[2, 4]"]
    space = load(SweepConfig, path, overrides).space
    assert space["optim.lr"].values == (0.2,)
    assert space["method.rank"].values == (2, 4)


# --- composition -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_loads_and_is_named_after_what_it_is(name: str) -> None:
    config = load_run(find_run(name))
    assert name == f"{config.backbone.name}-{config.task.name}-{config.method.name}"


def test_run_extends_a_recipe(write: Write) -> None:
    config = load_run(write("extends: vit-digits-digits-lora\noptim: {lr: 0.5}\n"))
    base = load_run(find_run("vit-digits-digits-lora"))
    assert diff(base, config) == [f"optim.lr: {base.optim.lr} -> 0.5"]


def test_fault_of_an_extended_file_names_that_file(write: Write, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("seed: 1\noptim:\n  lr: x\n")
    message = refusal(write("extends: base.yaml\nseed: 2\n"))
    assert message == f"{tmp_path / 'base.yaml'}:3: optim.lr must be a number, but got 'x'."


def test_sweep_extends_a_recipe_inside_run(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "name: s\nrun: {extends: vit-digits-digits-replora, method: lora}\nspace: {seed: {values: [1]}}\n"
    )
    run = load(SweepConfig, path).run
    assert run.method == LoraMethod()
    assert run.optim == load_run(find_run("vit-digits-digits-replora")).optim


def test_extends_in_a_circle_is_refused(write: Write, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("extends: run.yaml\n")
    assert "extends goes round in a circle" in refusal(write("extends: base.yaml\n"))


def test_extends_of_an_unknown_recipe_names_the_nearest(write: Write) -> None:
    assert "Did you mean vit-digits-digits-lora?" in refusal(write("extends: vit-digit-digits-lora"))


def test_run_is_read_from_a_best_file_beside_its_provenance(write: Write) -> None:
    path = write("run:\n  method: lora\nsweep: abc\nobjective: 0.9\n")
    assert load_run(path, ["seed=7"]) == RunConfig(method=LoraMethod(), seed=7)
    assert (
        refusal(path, "method.rank=x")
        == "override method.rank='x': method.rank must be an integer, but got 'x'."
    )


# --- points, keys, differences ---------------------------------------------------------------------


def test_point_sets_dotted_keys_on_a_base() -> None:
    config = run_from(RunConfig(), {"optim.lr": 1, "method.rank": 2, "seed": 5})
    assert diff(RunConfig(), config) == ["method.rank: 8 -> 2", "optim.lr: 0.001 -> 1.0", "seed: 0 -> 5"]


def test_point_that_changes_the_method_keeps_what_both_have() -> None:
    base = RunConfig(method=ReploraMethod(rank=2, hidden=64))
    assert run_from(base, {"method.name": "lora"}).method == LoraMethod(rank=2)
    assert run_from(
        run_from(base, {"method.name": "lora"}), {"method.name": "replora"}
    ).method == ReploraMethod(rank=2)


def test_point_with_a_field_of_another_method_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"method.hidden is not a field of the lora method"):
        run_from(RunConfig(), {"method.hidden": 3, "method.name": "lora"})


def test_point_with_several_faults_names_them_all() -> None:
    with pytest.raises(ConfigError) as caught:
        run_from(RunConfig(), {"optim.lr": "x", "foo.bar": 1, "train.steps": 0})
    assert [key in str(caught.value) for key in ("optim.lr", "foo", "train.steps")] == [True] * 3


def test_point_with_a_rank_above_the_width_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"method.rank must be at most 64"):
        run_from(RunConfig(), {"method.rank": 128})


def test_point_keeps_the_base_paths() -> None:
    base = RunConfig(task=ImageFolderTask(root=Path("photos")))
    assert run_from(base, {"seed": 1}).task == base.task


def test_valid_keys_are_those_of_the_present_method_without_paths() -> None:
    keys = valid_keys(RunConfig(method=LoraMethod(), task=ImageFolderTask(root=Path("x"))))
    assert {"method.rank", "optim.lr", "seed", "task.image_size"} <= set(keys)
    assert {"method.hidden", "task.root"}.isdisjoint(keys)


def test_every_valid_key_can_be_set() -> None:
    base = RunConfig()
    data = base.model_dump(mode="json")
    for key in valid_keys(base):
        value: object = data
        for part in key.split("."):
            assert isinstance(value, dict)
            value = value[part]
        assert run_from(base, {key: value}) == base  # type: ignore[dict-item]


def test_equal_runs_have_no_difference() -> None:
    assert diff(RunConfig(), RunConfig(task=DigitsTask())) == []


def test_the_order_of_keys_is_no_difference_and_the_end_of_a_long_list_is_one() -> None:
    def sweep(first: dict[str, float], last: float) -> SweepConfig:
        rates = {"optim.lr": {"values": [*(index / 1000 for index in range(1, 40)), last]}}
        return SweepConfig.model_validate({"name": "x", "space": rates, "search": {"first": [first]}})

    one = sweep({"optim.lr": 0.1, "method.rank": 8}, 0.5)
    assert diff(one, sweep({"method.rank": 8, "optim.lr": 0.1}, 0.5)) == []
    (line,) = diff(one, sweep({"optim.lr": 0.1, "method.rank": 8}, 0.6))
    assert line.startswith("space.optim.lr.values: [0.001, ")
    assert diff(one, sweep({"optim.lr": 0.2, "method.rank": 8}, 0.5)) == [
        "search.first[0].optim.lr: 0.1 -> 0.2"
    ]


def test_difference_of_methods_shows_fields_that_one_lacks() -> None:
    assert "method.hidden: 16 -> (none)" in diff(RunConfig(), RunConfig(method=LoraMethod()))


@pytest.mark.parametrize("run", ["llama-7b-commonsense-lora", "vl-bart-image-text-to-text-lora"])
def test_a_linear_probe_of_a_task_without_a_head_is_refused(run: str) -> None:
    with pytest.raises(ConfigError, match="linear-probe trains the task's head"):
        load_run(find_run(run), ["method.name=linear-probe"])
