"""Language models from a folder: what is loaded, what is refused, what is shared."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from replora.config import BackboneConfig
from replora.errors import CheckpointError, ConfigError, MachineError
from replora.models import hub
from replora.models.base import Backbone
from replora.models.language import build_language_model, language_features
from replora.models.load import load_backbone
from replora.models.token_loss import token_losses
from tests.replora.tiny_llama import made_items, save_tiny_llama

PROMPT = torch.tensor([[0, 40, 50, 60, 70], [0, 80, 90, 91, 92]])


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama's folder, in several shards; tests only read it."""
    return save_tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def copied(llama: Path, tmp_path: Path) -> Path:
    """The same, to be damaged."""
    return Path(shutil.copytree(llama, tmp_path / "llama"))


def loaded(folder: Path | str, precision: Any = "fp32", weights: str = "pretrained") -> Backbone:
    config = BackboneConfig(name=f"hf/{folder}", weights=weights)
    return load_backbone(config, precision=precision, device="cpu")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(PROMPT).logits
        return found


# --- what is loaded --------------------------------------------------------------------------------


def test_sharded_checkpoint_gives_the_logits_of_transformers(llama: Path) -> None:
    assert len(list(llama.glob("*.safetensors"))) > 2
    stock = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    assert torch.equal(logits(loaded(llama).model), logits(stock))


def test_tied_embeddings_serve_as_the_head(tmp_path: Path) -> None:
    folder = save_tiny_llama(tmp_path, tie_word_embeddings=True)
    model: Any = loaded(folder).model
    assert model.lm_head.weight is model.model.embed_tokens.weight
    stock = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert torch.equal(logits(model), logits(stock))


def test_bf16_weights_are_those_of_the_file_and_rotary_frequencies_stay_fp32(llama: Path) -> None:
    backbone, exact = loaded(llama, "bf16"), loaded(llama)
    name = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(backbone.model.get_parameter(name), exact.model.get_parameter(name).bfloat16())
    assert backbone.model.get_buffer("model.rotary_emb.inv_freq").dtype == torch.float32


def test_fingerprint_is_of_the_weights_and_not_of_the_precision(llama: Path, copied: Path) -> None:
    before = loaded(llama).fingerprint
    assert loaded(llama, "bf16").fingerprint == before == loaded(copied).fingerprint
    shard = sorted(copied.glob("*.safetensors"))[-1]
    tensors = load_file(shard)
    tensors[min(tensors)].view(-1)[-1] += 1.0
    save_file(tensors, shard, {"format": "pt"})
    assert loaded(copied).fingerprint != before


def test_weights_in_the_files_own_type_stay_mapped(llama: Path) -> None:
    first, second = loaded(llama), loaded(llama)
    with Path("/proc/self/maps").open() as maps:
        assert sum(str(llama) in line for line in maps) > 2
    del first, second


def test_nothing_of_the_base_trains(llama: Path) -> None:
    model = loaded(llama).model
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model.training


def test_keys_and_values_of_grouped_queries_have_their_own_heads(llama: Path) -> None:
    targets = {target.name: target for target in loaded(llama).targets if target.block == 1}
    found = {name: (target.inputs, target.outputs, target.heads) for name, target in targets.items()}
    assert found == {
        "query": (32, 32, 4),
        "key": (32, 16, 2),
        "value": (32, 16, 2),
        "output": (32, 32, 0),
        "gate": (32, 48, 0),
        "up": (32, 48, 0),
        "down": (48, 32, 0),
    }
    assert targets["value"].module == "model.layers.1.self_attn.v_proj"


@pytest.mark.parametrize("kind", ["mistral", "qwen2", "qwen3"])
def test_other_models_of_llamas_form_load_as_well(kind: str, tmp_path: Path) -> None:
    from transformers import AutoConfig

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 400}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "eos_token_id": 1}
    config = AutoConfig.for_model(kind, **sizes)
    stock = AutoModelForCausalLM.from_config(config).eval()
    stock.save_pretrained(tmp_path)
    backbone = loaded(tmp_path)
    assert {target.name for target in backbone.targets} >= {"query", "value", "gate"}
    torch.testing.assert_close(logits(backbone.model), logits(stock))


def test_random_weights_are_the_same_every_time(llama: Path) -> None:
    first, second = (loaded(llama, weights="random").model for _ in range(2))
    assert torch.equal(logits(first), logits(second))
    assert not torch.equal(logits(first), logits(loaded(llama).model))


def test_folder_of_the_weights_may_be_given_apart_from_the_name(llama: Path) -> None:
    assert loaded("mine", weights=str(llama)).fingerprint == loaded(llama).fingerprint


# --- losses ----------------------------------------------------------------------------------------


def test_losses_of_tokens_are_those_of_the_logits(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("replora.models.token_loss.CHUNK", 3)
    model = loaded(llama, "fp64").model
    scored = torch.tensor([[False, True, True, True, False], [False, False, True, True, True]])
    found = language_features(model, {"tokens": PROMPT, "scored": scored})
    log_probs = logits(model).log_softmax(-1)[:, :-1]
    expected = -log_probs.gather(-1, PROMPT[:, 1:, None]).squeeze(-1)
    torch.testing.assert_close(found[:, 1:], torch.where(scored[:, 1:], expected, 0.0))
    assert found[:, 0].eq(0).all()


def test_gradient_of_the_losses_is_that_of_cross_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("replora.models.token_loss.CHUNK", 3)
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(shape, generator=generator).double() for shape in ((2, 5, 8), (400, 8)))
    hidden.requires_grad_()
    scored = torch.ones(2, 5, dtype=torch.bool)
    token_losses(hidden, weight, PROMPT, scored).sum().backward()
    found, hidden.grad = hidden.grad, None
    scores = (hidden @ weight.T)[:, :-1].flatten(0, 1)
    torch.nn.functional.cross_entropy(scores, PROMPT[:, 1:].flatten(), reduction="sum").backward()
    torch.testing.assert_close(found, hidden.grad)


def test_text_without_scored_tokens_has_no_loss(llama: Path) -> None:
    batch = {"tokens": PROMPT, "scored": torch.zeros_like(PROMPT, dtype=torch.bool)}
    assert language_features(loaded(llama).model, batch).eq(0).all()


# --- what is refused -------------------------------------------------------------------------------


def test_hub_name_offline_asks_for_a_local_folder() -> None:
    with pytest.raises(
        MachineError, match=r"(?s)some/model is neither a folder .* set backbone.name to hf/<folder>"
    ):
        loaded("some/model")


@pytest.fixture
def silent_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A hub that takes connections and says nothing; gives the folder of what was fetched earlier."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(hub, "_WAIT_S", 0.2)
        yield tmp_path


def test_a_hub_that_says_nothing_is_not_waited_for(silent_hub: Path) -> None:
    with pytest.raises(MachineError, match=r"does not answer: timed out.*\n  Offline, set backbone.name"):
        loaded("nobody/model")


def test_a_copy_on_this_machine_serves_where_the_hub_is_away(llama: Path, silent_hub: Path) -> None:
    kept = silent_hub / "models--nobody--model"
    shutil.copytree(llama, kept / "snapshots" / "0" / "")
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("0")
    with pytest.warns(UserWarning, match="does not answer: timed out, so nobody/model is the copy"):
        assert loaded("nobody/model").fingerprint == loaded(llama).fingerprint


def test_llama_without_a_folder_asks_for_one() -> None:
    with pytest.raises(MachineError, match=r"Set backbone.weights to their local folder"):
        load_backbone(BackboneConfig(name="llama-7b"), precision="bf16", device="cpu")


def test_another_model_under_the_name_of_a_llama_is_refused(llama: Path) -> None:
    config = BackboneConfig(name="llama-7b", weights=str(llama))
    with pytest.raises(ConfigError, match=r"is not llama-7b: .*'hidden_size': 32.* instead of"):
        load_backbone(config, precision="bf16", device="cpu")


def test_weights_that_are_no_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="is not a folder"):
        loaded("x", weights=str(tmp_path / "none"))


def test_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="describes no model that transformers knows"):
        loaded(tmp_path)


def _drop_shard(folder: Path) -> None:
    sorted(folder.glob("*.safetensors"))[0].unlink()


def _cut_shard(folder: Path) -> None:
    shard = sorted(folder.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-100])


def _misshape(folder: Path) -> None:
    shard = sorted(folder.glob("*.safetensors"))[-1]
    tensors = load_file(shard)
    tensors[min(tensors)] = torch.zeros(3)
    save_file(tensors, shard, {"format": "pt"})


def _change_index(folder: Path, change: Callable[[dict[str, str]], None]) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


def _lead_out(folder: Path) -> None:
    _change_index(folder, lambda files: files.update({min(files): "../other.safetensors"}))


def _only_pickles(folder: Path) -> None:
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    (folder / "pytorch_model.bin").touch()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_drop_shard, "cannot be read as a safetensors file"),
        (_cut_shard, "cannot be read as a safetensors file"),
        (_misshape, r"must be \[.*\], but got \[3\]"),
        (_lead_out, "is not a file of its own folder"),
        (_only_pickles, r"has pytorch_model.bin; convert it once"),
    ],
)
def test_damaged_checkpoint_is_refused(copied: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(copied)
    with pytest.raises(CheckpointError, match=message):
        loaded(copied)


def test_missing_tensor_is_named(copied: Path) -> None:
    for path in sorted(copied.glob("*.safetensors")):
        tensors = load_file(path)
        if tensors.pop("model.norm.weight", None) is not None:
            save_file(tensors, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight is missing"):
        loaded(copied)


def test_batch_of_images_is_refused(llama: Path) -> None:
    with pytest.raises(ConfigError, match="a language model takes texts, but the task gives image, label"):
        language_features(loaded(llama).model, {"image": torch.zeros(1), "label": torch.zeros(1)})


def test_model_of_another_form_is_refused(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=50)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"a gpt2 has no model\.layers"):
        loaded(tmp_path)


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("Granite", {"logits_scaling": 4.0}, "logits_scaling 4.0"),
        ("Cohere", {"logit_scale": 0.25}, "logit_scale 0.25"),
        ("Phi", {}, "a bias in the language head"),
        ("Gemma2", {}, "a gemma2 is no causal language model here"),
    ],
)
def test_models_whose_losses_would_be_wrong_are_refused(
    kind: str, changes: dict[str, Any], words: str
) -> None:
    import transformers

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}
    config = getattr(transformers, f"{kind}Config")(**sizes, **{"eos_token_id": 1, **changes})
    with pytest.raises(ConfigError, match=words):
        build_language_model(config, torch.float32)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_of_a_folder_is_never_run_and_nobody_is_asked(
    copied: Path, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda text: "y")
    described = json.loads((copied / file).read_text())
    described |= {"model_type": "theirs", "tokenizer_class": "Theirs"}
    described["auto_map"] = {"AutoConfig": "theirs.Theirs", "AutoTokenizer": ["theirs.Theirs", None]}
    (copied / file).write_text(json.dumps(described))
    (copied / "theirs.py").write_text("raise AssertionError('their code ran')")
    with pytest.raises(ConfigError, match="contains custom code"):
        loaded(copied).processor.encode(["a text"])  # type: ignore[union-attr]


def test_tokenizer_of_a_larger_vocabulary_is_refused(tmp_path: Path) -> None:
    backbone = loaded(save_tiny_llama(tmp_path, vocab_size=300))
    with pytest.raises(ConfigError, match="but the model knows 300 tokens"):
        backbone.processor.encode([made_items("boolq", 1)[0]["instruction"]])  # type: ignore[union-attr]


def test_where_the_model_names_no_end_answers_end_as_the_texts_do(tmp_path: Path) -> None:
    backbone = loaded(save_tiny_llama(tmp_path, eos_token_id=None))
    assert backbone.model.config.eos_token_id == 1  # type: ignore[union-attr]
