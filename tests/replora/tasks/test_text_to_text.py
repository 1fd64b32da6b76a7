"""Text to text: files as a person writes them, what a batch holds, what the metrics count."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from replora import cli
from replora.config import TextToTextTask
from replora.errors import ConfigError, DataError
from replora.models.hub import HubTokenizer
from replora.tasks.base import Batch
from replora.tasks.pairs import read_pairs
from replora.tasks.text_to_text import TextToText, text_to_text_task
from tests.replora.tiny_bart import FEATURES, save_bart_tokenizer, save_pairs, save_tiny_bart

CPU, END = torch.device("cpu"), 2


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> HubTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_bart_tokenizer(folder)
    return HubTokenizer(folder, 300)


@pytest.fixture
def task(tokenizer: HubTokenizer) -> Callable[..., TextToText]:
    def _task(root: Path, **fields: Any) -> TextToText:
        return text_to_text_task(TextToTextTask(root=root, eval_batch=2, **fields), tokenizer, CPU)

    return _task


Make = Callable[..., TextToText]


# --- reading ---------------------------------------------------------------------------------------


def test_json_and_jsonl_hold_the_same_items(tmp_path: Path) -> None:
    root = save_pairs(tmp_path)
    before = read_pairs(TextToTextTask(root=root)).splits
    items = [json.loads(line) for line in (root / "val.jsonl").read_text().splitlines()]
    (root / "val.jsonl").unlink()
    (root / "val.json").write_text(json.dumps(items))
    assert read_pairs(TextToTextTask(root=root)).splits == before
    assert before["val"][1].source == "what colour is cat 1?"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("", "has no items"),
        ('{"source": "a", "target": "b"}\n7', "item 1 must have source and target, but is 7"),
        ('{"source": "a"}', "item 0 must have text as its target, but has null"),
        ('{"source": 3, "target": "b"}', "item 0 must have text as its source, but has 3"),
        ('{"source": "a", "target": "b", "image": "c"}', "item 0 has image, but only source, target, visual"),
        (
            '{"source": "a", "target": "b", "visual": ["1", "2", "3"]}',
            "item 0 must have one name or a list of at most two as visual",
        ),
    ],
)
def test_a_wrong_item_is_named(tmp_path: Path, content: str, message: str) -> None:
    root = save_pairs(tmp_path)
    (root / "train.jsonl").write_text(content)
    with pytest.raises(DataError, match=message):
        read_pairs(TextToTextTask(root=root))


def test_a_missing_split_is_named_and_test_may_be_missing(tmp_path: Path, task: Make) -> None:
    root = save_pairs(tmp_path)
    (root / "test.jsonl").unlink()
    with pytest.raises(DataError, match=r"the task has no test split: add test\.jsonl"):
        task(root).split("test")
    (root / "val.jsonl").unlink()
    with pytest.raises(DataError, match=r"must hold val.jsonl or val.json, but neither is there"):
        task(root)


def test_any_change_of_the_data_changes_its_hash(tmp_path: Path) -> None:
    root = save_pairs(tmp_path, visual=True)
    config = TextToTextTask(root=root, visual_tokens=6)
    hashes = [read_pairs(config).data_hash]
    features = load_file(root / "visual.safetensors")
    save_file({**features, "val-0": features["val-0"] + 1}, root / "visual.safetensors")
    hashes.append(read_pairs(config).data_hash)
    (root / "train.jsonl").write_text((root / "train.jsonl").read_text().replace("cat 1", "cat 9"))
    hashes.append(read_pairs(config).data_hash)
    assert len(set(hashes)) == 3


@pytest.mark.parametrize(
    ("changes", "tokens", "message"),
    [
        ({}, 5, "have 6 rows, but task.visual_tokens is 5"),
        ({"val-0": None}, 6, "val-0.boxes has no features of as many rows"),
        ({"val-0": None, "val-0.boxes": None}, 6, "has no features named val-0"),
        ({"val-0": torch.zeros(3, 8)}, 6, r"must have one width, but have \[7, 8\]"),
        ({"val-0": torch.zeros(3)}, 6, r"val-0 must be numbers \[L, F\]"),
        ({"val-0.boxes": torch.zeros(3, 5)}, 6, r"val-0.boxes must be numbers \[L, 4\]"),
    ],
)
def test_features_that_do_not_fit_are_named(
    tmp_path: Path, changes: dict[str, Tensor | None], tokens: int, message: str
) -> None:
    root = save_pairs(tmp_path, visual=True)
    features = {**load_file(root / "visual.safetensors"), **changes}
    save_file(
        {name: each for name, each in features.items() if each is not None}, root / "visual.safetensors"
    )
    with pytest.raises(DataError, match=message):
        read_pairs(TextToTextTask(root=root, visual_tokens=tokens))


def test_features_that_nobody_asked_for_are_not_left_out_silently(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"set task\.visual_tokens"):
        read_pairs(TextToTextTask(root=save_pairs(tmp_path, visual=True)))


def test_a_backbone_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs a model with a tokenizer"):
        text_to_text_task(TextToTextTask(root=save_pairs(tmp_path)), None, CPU)


# --- batches ---------------------------------------------------------------------------------------


def test_texts_are_framed_padded_and_cut_before_their_end_token(
    tmp_path: Path, task: Make, tokenizer: HubTokenizer
) -> None:
    split = task(save_pairs(tmp_path), source_tokens=7, target_tokens=12).split("train")
    batch = split.take(torch.tensor([0, 1]), None)
    (whole,) = tokenizer.encode([split.pairs[0].source])
    assert batch["source"][0].tolist() == [*whole[:6], END]
    assert batch["mask"].all()
    (red,) = tokenizer.encode(["red"])
    assert batch["target"][0].tolist() == red + [END] * (12 - len(red))
    assert batch["scored"][0].tolist() == [True] * len(red) + [False] * (12 - len(red))


def test_pictures_follow_one_another_and_know_their_place(tmp_path: Path, task: Make) -> None:
    root = save_pairs(tmp_path, visual=True)
    features = load_file(root / "visual.safetensors")
    batch = task(root, visual_tokens=8).split("train").take(torch.tensor([0, 1]), None)
    assert batch["visual"].shape == (2, 8, FEATURES)
    assert batch["visual_mask"].tolist() == [[1] * 3 + [0] * 5, [1] * 6 + [0] * 2]
    assert batch["image"][1].tolist() == [0, 0, 0, 1, 1, 1, 0, 0]
    assert torch.equal(batch["visual"][1, 3:6], features["train-1-b"])
    assert torch.equal(batch["boxes"][0, :3], features["train-0.boxes"])


# --- metrics ---------------------------------------------------------------------------------------


def test_loss_is_the_mean_over_a_slots_own_tokens(tmp_path: Path, task: Make) -> None:
    found = task(save_pairs(tmp_path))
    scored = torch.tensor([[[1, 1, 0], [1, 0, 0]], [[1, 1, 1], [1, 1, 1]]]).bool()
    losses = torch.arange(12.0).view(2, 2, 3) * scored
    assert found.loss(losses, {"scored": scored}).tolist() == pytest.approx([4 / 3, 8.5])


def test_accuracy_counts_targets_written_word_for_word(
    tmp_path: Path, task: Make, tokenizer: HubTokenizer
) -> None:
    """Slot 0 always writes red, slot 1 always green; the targets are red, green and blue."""
    found = task(save_pairs(tmp_path), target_tokens=12, val_answers=True)

    def forward(batch: Batch) -> Tensor:
        if "target" in batch:
            return batch["scored"] * torch.tensor([1.0, 2.0]).view(2, 1, 1)
        assert int(batch["new_tokens"].flatten()[0]) == 12
        words = [tokenizer.encode([word])[0] for word in ("red", "green")]
        padded = torch.tensor([word + [END] * (12 - len(word)) for word in words])
        return padded.unsqueeze(1).expand(-1, batch["source"].shape[1], -1)

    assert found.evaluate(forward, 2, "val") == [
        {"loss": 1.0, "accuracy": pytest.approx(1 / 3)},
        {"loss": 2.0, "accuracy": pytest.approx(1 / 3)},
    ]
    silent = task(tmp_path, target_tokens=12)
    assert silent.evaluate(forward, 2, "val") == [{"loss": 1.0}, {"loss": 2.0}]
    assert "accuracy" in silent.evaluate(forward, 2, "test")[0]


# --- from files to metrics -------------------------------------------------------------------------


def command(*words: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert cli.main([*words, "--json"]) == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_a_bart_learns_to_answer_through_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bart, data = save_tiny_bart(tmp_path / "bart"), save_pairs(tmp_path / "data")
    run = tmp_path / "run.yaml"
    run.write_text(
        f"backbone: hf/{bart}\ntask: {{name: text-to-text, root: {data}, source_tokens: 24, "
        "target_tokens: 8, beams: 1, val_answers: true}\n"
        "method: {name: replora, rank: 4, hidden: 8, targets: [query, value, up, down]}\n"
        "optim: {lr: 2e-2}\ntrain: {steps: 60, batch: 4, eval_every: 30}\n"
    )
    trained = command("train", str(run), "--dir", str(tmp_path / "out"), capsys=capsys)
    reports = trained["metrics"]
    assert reports["val_loss"] < 2.0  # 5.7 = log 300 before
    tested = command("eval", str(tmp_path / "out"), "--split", "test", capsys=capsys)
    assert tested["metrics"]["loss"] < 2.0
    assert 0.0 <= tested["metrics"]["accuracy"] <= 1.0
    for form in ("merged", "peft-lora", "replora"):
        out = tmp_path / form
        command("export", str(tmp_path / "out"), "--as", form, "--out", str(out), capsys=capsys)
        assert any(out.glob("*.safetensors"))
