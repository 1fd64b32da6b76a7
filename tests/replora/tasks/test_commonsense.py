"""Commonsense reasoning from files in the published layout to metrics."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from replora import cli
from replora.config import COMMONSENSE_SETS, BackboneConfig, CommonsenseTask
from replora.errors import ConfigError, DataError
from replora.models.hub import HubTokenizer
from replora.models.load import load_backbone
from replora.tasks import TASKS
from replora.tasks.base import Batch
from replora.tasks.commonsense import Commonsense, commonsense_task
from replora.tasks.commonsense_data import read_commonsense
from replora.tasks.prompts import training_prompt
from tests.replora.tiny_llama import made_items, save_commonsense, save_tiny_llama, write_items

CPU = torch.device("cpu")
END = 1


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published layout, small; tests only read it."""
    return save_commonsense(tmp_path_factory.mktemp("data"))


def settings(root: Path, **fields: Any) -> CommonsenseTask:
    return CommonsenseTask.model_validate({"root": root, "val_items": 4, "eval_batch": 3, **fields})


@pytest.fixture
def task(llama: Path, data: Path) -> Callable[..., Commonsense]:
    def _task(**fields: Any) -> Commonsense:
        return commonsense_task(settings(data, **fields), HubTokenizer(llama, 400), CPU)

    return _task


# --- reading ---------------------------------------------------------------------------------------


def test_validation_items_are_the_first_of_the_permutation_of_seed_42(data: Path) -> None:
    items = json.loads((data / "commonsense_170k.json").read_text())
    found = read_commonsense(settings(data))
    order = np.random.default_rng(42).permutation(len(items))
    assert [item.instruction for item in found.val] == [items[index]["instruction"] for index in order[:4]]
    assert len(found.train) == len(items) - 4
    assert not {item.instruction for item in found.val} & {item.instruction for item in found.train}


def test_one_set_is_tested_alone_and_all_are_trained_on(data: Path) -> None:
    found = read_commonsense(settings(data, name="commonsense-arc-c"))
    assert list(found.tests) == ["arc-c"]
    assert found.train == read_commonsense(settings(data)).train


def test_every_set_has_a_task_of_its_own() -> None:
    assert {f"commonsense-{name}" for name in COMMONSENSE_SETS} | {"commonsense"} <= set(TASKS)


def test_data_hash_changes_with_the_content_of_any_file(tmp_path: Path) -> None:
    root = save_commonsense(tmp_path)
    hashes = {read_commonsense(settings(root)).data_hash}
    for path in (root / "commonsense_170k.json", root / "dataset/ARC-Easy/test.json"):
        path.write_text(path.read_text().replace("Question 0", "Question zero"))
        hashes.add(read_commonsense(settings(root)).data_hash)
    assert len(hashes) == 3


def _entries(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """Changes item 2 of boolq's test file."""

    def _changed(root: Path) -> None:
        path = root / "dataset/boolq/test.json"
        entries = json.loads(path.read_text())
        change(entries[2])
        write_items(path, entries)

    return _changed


def _cut(root: Path) -> None:
    path = root / "commonsense_170k.json"
    path.write_text(path.read_text()[:-20])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda root: (root / "commonsense_170k.json").unlink(),
            r"commonsense_170k.json cannot be read \(No such",
        ),
        (lambda root: (root / "dataset/piqa/test.json").unlink(), r"piqa/test.json cannot be read"),
        (_cut, "is not JSON .* fetch it again"),
        (
            lambda root: write_items(root / "dataset/boolq/test.json", []),
            r"must be a list of items, but is \[\]",
        ),
        (
            _entries(lambda item: item.pop("answer")),
            "item 2 has no answer; it has instruction, input, output",
        ),
        (_entries(lambda item: item.update(input=None)), "input of item 2 must be text, but is null"),
        (
            _entries(lambda item: item.update(answer="answer1")),
            'answer of item 2 must be one of true, false, but is "answer1"',
        ),
    ],
)
def test_data_in_another_form_is_refused(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    root = save_commonsense(tmp_path)
    damage(root)
    with pytest.raises(DataError, match=message):
        read_commonsense(settings(root))


def test_file_shorter_than_the_validation_split_is_refused(data: Path) -> None:
    with pytest.raises(DataError, match=r"has 48 items, but task\.val_items holds 48 out"):
        read_commonsense(settings(data, val_items=48))


def test_backbone_without_a_tokenizer_is_refused(data: Path) -> None:
    with pytest.raises(ConfigError, match="needs a language model with a tokenizer"):
        commonsense_task(settings(data), None, CPU)


# --- batches ---------------------------------------------------------------------------------------


def test_text_is_scored_to_its_end_token_and_not_beyond(
    task: Callable[..., Commonsense], llama: Path
) -> None:
    split = task().split("train")
    batch = split.take(torch.tensor([3]), None)
    item = split.items[3]
    length = int(batch["scored"].sum()) + 1
    whole = training_prompt(item, "clean") + item.output
    assert HubTokenizer(llama, 400).decode([batch["tokens"][0, :length].tolist()]) == [whole]
    assert batch["tokens"][0, length - 1] == END
    assert batch["scored"][0].tolist() == [False] + [True] * (length - 1) + [False] * (256 - length)


def test_long_text_is_cut_without_an_end_token(task: Callable[..., Commonsense]) -> None:
    batch = task(cutoff=10).split("train").take(torch.tensor([0, 1]), None)
    assert batch["tokens"].shape == (2, 10)
    assert not batch["tokens"].eq(END).any()
    assert batch["scored"].sum(1).tolist() == [9, 9]


def test_loss_on_the_response_scores_the_output_alone(task: Callable[..., Commonsense], llama: Path) -> None:
    split = task(loss_on="response").split("train")
    batch = split.take(torch.tensor([0]), None)
    scored = batch["tokens"][batch["scored"]].tolist()
    assert HubTokenizer(llama, 400).decode([scored]) == [split.items[0].output]


def test_loss_is_the_mean_over_each_slots_own_tokens(task: Callable[..., Commonsense]) -> None:
    output = torch.tensor([[[0.0, 1.0, 2.0]], [[0.0, 5.0, 0.0]]])
    scored = torch.tensor([[[False, True, True]], [[False, True, False]]])
    assert task().loss(output, {"scored": scored}).tolist() == [1.5, 5.0]


# --- metrics ---------------------------------------------------------------------------------------


class Oracle:
    """Answers like two slots of which the first always says the same word."""

    def __init__(self, llama: Path, words: Sequence[str]) -> None:
        self._processor = HubTokenizer(llama, 400)
        self._words = words
        self.batches: list[Batch] = []

    def __call__(self, batch: Batch) -> Tensor:
        self.batches.append(batch)
        if "tokens" in batch:
            return batch["scored"].double() * torch.tensor([1.0, 2.0]).view(2, 1, 1)
        rows = batch["prompt"].shape[1]
        said = [self._processor.encode([f"the correct answer is {word}"])[0][1:] for word in self._words]
        width = max(map(len, said))
        padded = [tokens + [END] * (width - len(tokens)) for tokens in said]
        return torch.tensor(padded).unsqueeze(1).expand(-1, rows, -1)


def test_test_gives_each_sets_accuracy_and_their_mean(task: Callable[..., Commonsense], llama: Path) -> None:
    first, second = task().evaluate(Oracle(llama, ["true", "option1"]), 2, "test")
    assert first["accuracy_boolq"] == pytest.approx(2 / 3)  # true, false, true
    assert first["accuracy_winogrande"] == 0.0
    assert second["accuracy_winogrande"] == pytest.approx(2 / 3)
    assert first["accuracy"] == pytest.approx(2 / 3 / 8)
    assert len(first) == 9


def test_validation_gives_the_mean_loss_of_a_token(task: Callable[..., Commonsense], llama: Path) -> None:
    oracle = Oracle(llama, ["true", "true"])
    assert task().evaluate(oracle, 2, "val") == [{"loss": 1.0}, {"loss": 2.0}]
    assert [batch["tokens"].shape[:2] for batch in oracle.batches] == [(2, 3), (2, 1)]


def test_validation_gives_accuracy_where_asked(task: Callable[..., Commonsense], llama: Path) -> None:
    words = ["true", "nothing"]
    found = task(val_answers=True, val_items=40).evaluate(Oracle(llama, words), 2, "val")
    assert 0 < found[0]["accuracy"] < 1
    assert found[1]["accuracy"] == 0


def test_prompts_are_padded_on_the_left_and_sorted_by_length(
    task: Callable[..., Commonsense], llama: Path
) -> None:
    oracle = Oracle(llama, ["true", "true"])
    task(beams=3, new_tokens=7).evaluate(oracle, 2, "test")
    widths = []
    for batch in oracle.batches:
        mask = batch["mask"][0]
        assert mask[:, -1].eq(1).all()
        assert (mask.diff(dim=1) >= 0).all()
        assert batch["prompt"][0][mask == 0].eq(END).all()
        assert (batch["beams"].unique().tolist(), batch["new_tokens"].unique().tolist()) == ([3], [7])
        widths.append(mask.sum(1).max())
    assert len(widths) == 8  # each set's three items are one batch


def test_answers_come_back_in_the_order_of_the_prompts(llama: Path) -> None:
    from replora.tasks.generation import Search, generate

    processor = HubTokenizer(llama, 400)
    prompts = ["a long prompt of many words", "b", "a middling prompt"]

    def echo(batch: Batch) -> Tensor:
        return batch["prompt"]

    texts = generate(echo, 2, prompts, processor, Search(beams=1, new_tokens=1, batch=2))
    assert texts == [prompts, prompts]


def test_a_prompt_is_left_open_by_a_tokenizer_that_ends_texts(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from replora.tasks.generation import Search, generate

    plain, seen = HubTokenizer(llama, 400), []
    wanted = plain.encode(["a prompt"])

    def look(batch: Batch) -> Tensor:
        seen.append(batch["prompt"][0].tolist())
        return batch["prompt"]

    monkeypatch.setattr(plain, "encode", lambda texts: [[*tokens, END] for tokens in wanted])
    generate(look, 1, ["a prompt"], plain, Search(beams=1, new_tokens=1, batch=1))
    assert seen == [wanted]


# --- the command line ------------------------------------------------------------------------------


def test_run_on_a_folder_trains_evaluates_and_exports(
    llama: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def replora(*arguments: str) -> Any:
        capsys.readouterr()
        status = cli.main([*arguments, "--json"])
        out, err = capsys.readouterr()
        assert status == 0, err
        return json.loads(out)

    run = tmp_path / "run.yaml"
    run.write_text(
        f"backbone: {{name: hf/{llama}}}\n"
        "method: {name: replora, rank: 4, hidden: 8, plain_targets: [up]}\n"
        f"task: {{name: commonsense-boolq, root: {data}, cutoff: 96, val_items: 4, new_tokens: 3}}\n"
        "train: {steps: 4, batch: 4, micro_batch: 2, eval_every: 2}\n"
    )
    trained = replora("train", str(run), "--dir", str(tmp_path / "run"))
    assert set(trained["metrics"]) == {"val_loss", "train_loss", "lr", "seconds"}
    tested = replora("eval", str(tmp_path / "run"), "--split", "test")["metrics"]
    assert set(tested) == {"accuracy_boolq", "accuracy"}
    validated = replora("eval", str(tmp_path / "run"))["metrics"]
    assert validated["loss"] == pytest.approx(trained["metrics"]["val_loss"])
    merged = tmp_path / "merged"
    replora("export", str(tmp_path / "run"), "--as", "merged", "--out", str(merged))
    again = load_backbone(BackboneConfig(name=f"hf/{merged}"), precision="fp32", device="cpu")
    assert (
        again.fingerprint
        != load_backbone(BackboneConfig(name=f"hf/{llama}"), precision="fp32", device="cpu").fingerprint
    )
    assert HubTokenizer(merged, 400).encode(["a text"]) == HubTokenizer(llama, 400).encode(["a text"])


def test_made_items_have_every_answer() -> None:
    assert {item["answer"] for item in made_items("siqa", 5)} == {f"answer{n}" for n in range(1, 6)}
