"""Train RepLoRA with PEFT and the stock Hugging Face Trainer, save it, load it and merge it.

    python examples/train_with_peft.py OUT_DIR [MODEL_DIR]

MODEL_DIR is a Llama-style checkpoint; without one a tiny random Llama learns a sentence byte by byte, in a
few seconds on a CPU. Ends with status 1 if the loaded or the merged model differs from the trained.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, Trainer, TrainingArguments

from replora.methods.exchange import RepLoraConfig  # registers RepLoRA with PEFT

SENTENCE = b"A and B come from small generators that the targets of a block share."


def base(model_dir: Path | None) -> Any:
    """The frozen model, from a folder or tiny and random."""
    if model_dir is not None:
        return AutoModelForCausalLM.from_pretrained(model_dir)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    config = LlamaConfig(**sizes, vocab_size=256, num_attention_heads=4, bos_token_id=0, eos_token_id=1)
    return AutoModelForCausalLM.from_config(config)


def examples(count: int) -> list[dict[str, Tensor]]:
    """The sentence over and over, as byte tokens."""
    ids = torch.tensor(list(SENTENCE))
    return [{"input_ids": ids, "labels": ids} for _ in range(count)]


def train(model: Any, out: Path, steps: int) -> None:
    """A run of the stock Trainer."""
    arguments = TrainingArguments(
        output_dir=str(out / "checkpoints"),
        max_steps=steps,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        report_to=[],
        save_strategy="no",
        use_cpu=not torch.cuda.is_available(),
    )
    Trainer(model=model, args=arguments, train_dataset=examples(64)).train()


def main() -> int:
    """Train, save, load, merge; compare the logits."""
    if len(sys.argv) not in (2, 3):
        print(__doc__, file=sys.stderr)
        return 2
    out, model_dir = Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) == 3 else None
    targets = ["q_proj", "v_proj", "up_proj", "down_proj"]
    config = RepLoraConfig(r=8, hidden=16, target_modules=targets, plain_modules=targets[2:])
    model = get_peft_model(base(model_dir), config)
    model.print_trainable_parameters()
    train(model, out, steps=40)
    model.eval().save_pretrained(str(out / "adapter"))
    loaded = PeftModel.from_pretrained(base(model_dir), out / "adapter")
    ids = examples(1)[0]["input_ids"].unsqueeze(0).to(model.device)
    with torch.inference_mode():
        trained, reloaded = model(ids).logits, loaded(ids.to(loaded.device)).logits.to(model.device)
        merged = loaded.merge_and_unload()(ids.to(loaded.device)).logits.to(model.device)
    agree = torch.equal(trained, reloaded) and torch.allclose(trained, merged, atol=1e-3)
    print(f"{out / 'adapter'}: loaded and merged {'agree with' if agree else 'DIFFER from'} what was trained")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
