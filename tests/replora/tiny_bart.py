"""A tiny BART, its tokenizer and files of sources and targets, as a person has them on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import BartConfig, BartForConditionalGeneration, PreTrainedTokenizerFast

#: Special tokens with BART's ids (known): start 0, padding 1, end 2.
START, PADDING, END = "<s>", "<pad>", "</s>"


def tiny_bart_config(**changes: Any) -> BartConfig:
    """Two layers of width 32 with four heads on each side."""
    settings: dict[str, Any] = {"d_model": 32, "vocab_size": 300, "max_position_embeddings": 64}
    settings |= dict.fromkeys(("encoder_layers", "decoder_layers"), 2)
    settings |= dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4)
    settings |= dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 48)
    return BartConfig(init_std=0.2, **{**settings, **changes})


def tiny_bart(**changes: Any) -> BartForConditionalGeneration:
    """Random weights in which every bias counts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: BartForConditionalGeneration = BartForConditionalGeneration(tiny_bart_config(**changes))
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.1)
        model.eval()
    return model


def save_tiny_bart(folder: Path, **changes: Any) -> Path:
    """A checkpoint folder: safetensors, `config.json`, a byte-level tokenizer of 300 tokens."""
    save_bart_tokenizer(folder)
    tiny_bart(**changes).save_pretrained(folder)
    return folder


def save_bart_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer that frames a text as BART's does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[START, PADDING, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["what colour is the cat", "red green blue two three"], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, 0), (END, 2)]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=START, pad_token=PADDING, eos_token=END
    )
    wrapped.save_pretrained(folder)


#: Width of the features of the made pictures.
FEATURES = 7


def save_pairs(root: Path, train: int = 8, *, visual: bool = False) -> Path:
    """Questions and answers; with `visual`, each about one or two pictures of three regions."""
    root.mkdir(parents=True, exist_ok=True)
    generator, features = torch.Generator().manual_seed(0), {}
    for split, count in {"train": train, "val": 3, "test": 3}.items():
        lines = []
        for number in range(count):
            colour = ("red", "green", "blue")[number % 3]
            item: dict[str, object] = {"source": f"what colour is cat {number}?", "target": colour}
            if visual:
                names = [f"{split}-{number}", f"{split}-{number}-b"][: 1 + number % 2]
                for name in names:
                    features[name] = torch.randn(3, FEATURES, generator=generator)
                    features[f"{name}.boxes"] = torch.rand(3, 4, generator=generator)
                item["visual"] = names if len(names) > 1 else names[0]
            lines.append(json.dumps(item))
        (root / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    if visual:
        save_file(features, root / "visual.safetensors")
    return root
