"""A tiny Llama with grouped queries, its tokenizer and commonsense files, as a person has them on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from replora.config import COMMONSENSE_SETS
from replora.tasks.commonsense_data import FORMS, SET_FORMS

START, END = "<s>", "</s>"


def save_tiny_llama(folder: Path, **changes: Any) -> Path:
    """A checkpoint folder: random weights, safetensors in several shards, a byte-level tokenizer."""
    save_tokenizer(folder)
    settings: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "vocab_size": 400,
    }
    settings |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
    settings |= {"bos_token_id": 0, "eos_token_id": 1, "initializer_range": 0.2, **changes}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**settings)).save_pretrained(folder, max_shard_size="40KB")
    return folder


def save_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [text for name in SET_FORMS for item in made_items(name, 20) for text in item.values()]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A", special_tokens=[(START, 0)]
    )
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=START, eos_token=END)
    wrapped.save_pretrained(folder)


def made_items(name: str, count: int) -> list[dict[str, str]]:
    """Items of a set in the published form."""
    answers = FORMS[SET_FORMS[name]]
    return [
        {
            "instruction": f"Question {number} of {name}: which is right? Answer format: {'/'.join(answers)}",
            "input": "",
            "output": f"the correct answer is {answers[number % len(answers)]}",
            "answer": answers[number % len(answers)],
        }
        for number in range(count)
    ]


def save_commonsense(root: Path, train: int = 6, test: int = 3) -> Path:
    """`commonsense_170k.json` with `train` items of each set, and `test` items in each test file."""
    root.mkdir(parents=True, exist_ok=True)
    items = [item for name in SET_FORMS for item in made_items(name, train)]
    write_items(root / "commonsense_170k.json", items)
    for name, folder in COMMONSENSE_SETS.items():
        write_items(root / "dataset" / folder / "test.json", made_items(name, test))
    return root


def write_items(path: Path, items: list[Mapping[str, object]] | list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(items, indent=4))
