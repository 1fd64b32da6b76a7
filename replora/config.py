"""What one training run is, as data: backbone + method + task + optimizer + training + seed.

Frozen pydantic models that forbid unknown keys. Nothing here imports torch, so `replora ls` and
`--dry-run` stay fast; what each name builds lives in `replora.models`, `replora.methods` and
`replora.tasks`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from replora.frozen import Fraction, Frozen, Place, Positive
from replora.method_config import (
    AdapterMethod,
    ComposedMethod,
    DoraMethod,
    DoranMethod,
    FullMethod,
    GeneratedMethod,
    HoraMethod,
    LinearProbeMethod,
    LoraMethod,
    LowRankConfig,
    LowRankMethod,
    MethodConfig,
    PrefixMethod,
    ReploraMethod,
)

__all__ = [
    "COMMONSENSE_SETS",
    "AdapterMethod",
    "BackboneConfig",
    "CommonsenseTask",
    "ComposedMethod",
    "DigitsTask",
    "DoraMethod",
    "DoranMethod",
    "EngineConfig",
    "FolderTask",
    "FullMethod",
    "GeneratedMethod",
    "HoraMethod",
    "ImageFolderTask",
    "LinearProbeMethod",
    "LoraMethod",
    "LowRankConfig",
    "LowRankMethod",
    "MethodConfig",
    "OptimConfig",
    "OptimPhase",
    "PrefixMethod",
    "ReploraMethod",
    "RunConfig",
    "TaskConfig",
    "TextToTextTask",
    "TrainConfig",
    "VideoFolderTask",
]


class BackboneConfig(Frozen):
    """The frozen model that is adapted.

    Attributes:
        name: A name of `replora ls backbones`, `timm/<any timm ViT>`, or `hf/<folder or hub name>` of a
            language model of Llama's form.
        weights: `pretrained` (the backbone's named weights), `random` (only when asked for by this
            word), or the path of a local checkpoint: for an image model a file (.safetensors, or a timm
            .pth read weights-only), for a language model a folder of safetensors with its tokenizer.
    """

    name: str = "vit-digits"
    weights: str = "pretrained"


class DigitsTask(Frozen):
    """scikit-learn's 1,797 handwritten digits as a transfer problem.

    The backbone `vit-digits` is pre-trained on the classes 0 to 4; this task adapts it to the
    classes it has never seen, 5 to 9, with fixed, disjoint, stratified splits.

    Attributes:
        train_images: Images in the training split, taken evenly from the five classes.
    """

    name: Literal["digits"] = "digits"
    train_images: Annotated[int, Field(ge=5, le=400)] = 400


class FolderTask(Frozen):
    """A person's own examples: `<root>/{train,val,test}/<class>/*`, or `<root>/<class>/*` split by hash.

    Attributes:
        root: Folder of the examples.
        image_size: Side of the square that a model sees, in pixels.
        val_fraction: Share held out for validation where the folder has no `val`.
        test_fraction: Share held out for the final test where the folder has no `test`.
    """

    root: Path
    image_size: Positive = 224
    val_fraction: Fraction = 0.15
    test_fraction: Fraction = 0.15


class ImageFolderTask(FolderTask):
    """A person's own images, each squeezed to a square."""

    name: Literal["image-folder"] = "image-folder"


class VideoFolderTask(FolderTask):
    """A person's own clips: folders of frames, or files of pixels.

    Attributes:
        frames: Frames that a model sees, T.
        stride: From one of them to the next, in frames of the clip.
        mirror: Whether training mirrors half of the clips; false where left and right differ.
        segments: Views of a clip in time that an evaluation takes the mean of.
        crops: Views of each in space: the middle, or both ends of the longer side too.
    """

    name: Literal["video-folder"] = "video-folder"
    frames: Positive = 8
    stride: Positive = 4
    mirror: bool = True
    segments: Positive = 1
    crops: Literal[1, 3] = 1


#: Names of the eight sets as tasks have them -> their folders in the published data (known).
COMMONSENSE_SETS: dict[str, str] = {
    "boolq": "boolq",
    "piqa": "piqa",
    "siqa": "social_i_qa",
    "hellaswag": "hellaswag",
    "winogrande": "winogrande",
    "arc-e": "ARC-Easy",
    "arc-c": "ARC-Challenge",
    "obqa": "openbookqa",
}


class CommonsenseTask(Frozen):
    """Commonsense reasoning of LLM-Adapters: one training file, tests on eight sets or on one of them.

    Attributes:
        root: Folder with the training file and `dataset/<set>/test.json`.
        train_file: The training file, relative to `root`.
        template: The `clean` Alpaca prompt, or `parity`: the published prompts to the last space.
        cutoff: Longest training text, in tokens; longer ones are cut.
        loss_on: Tokens whose prediction counts: the whole `text` (as published) or the `response`.
        val_items: Items of the training file held out for validation (drawn with seed 42).
        val_answers: Whether validation also generates answers and reports `accuracy` beside the loss.
        eval_batch: Items per slot and forward pass in evaluations.
        beams: Beams of the search for an answer; 1 is greedy.
        new_tokens: Longest answer, in tokens.
    """

    name: Literal[
        "commonsense",
        "commonsense-boolq",
        "commonsense-piqa",
        "commonsense-siqa",
        "commonsense-hellaswag",
        "commonsense-winogrande",
        "commonsense-arc-e",
        "commonsense-arc-c",
        "commonsense-obqa",
    ] = "commonsense"
    root: Path
    train_file: str = "commonsense_170k.json"
    template: Literal["clean", "parity"] = "clean"
    cutoff: Annotated[int, Field(ge=2)] = 256
    loss_on: Literal["text", "response"] = "text"
    val_items: Positive = 120
    val_answers: bool = False
    eval_batch: Positive = 16
    beams: Positive = 4
    new_tokens: Positive = 32


class TextToTextTask(Frozen):
    """Source texts to target texts, with or without visual features: `<root>/{train,val,test}.jsonl`.

    Attributes:
        root: Folder of the files.
        source_tokens: Longest source, in tokens; longer ones are cut.
        target_tokens: Longest target, and longest generated text.
        visual_tokens: Most rows of visual features of an item (`<root>/visual.safetensors`); 0 for none.
        val_answers: Whether validation also generates texts and reports `accuracy` beside the loss.
        eval_batch: Items per slot and forward pass in evaluations.
        beams: Beams of the search for a text; 1 is greedy.
    """

    name: Literal["text-to-text"] = "text-to-text"
    root: Path
    source_tokens: Annotated[int, Field(ge=2)] = 64
    target_tokens: Annotated[int, Field(ge=2)] = 32
    visual_tokens: Annotated[int, Field(ge=0)] = 0
    val_answers: bool = False
    eval_batch: Positive = 16
    beams: Positive = 4


TaskConfig = Annotated[
    DigitsTask | ImageFolderTask | VideoFolderTask | CommonsenseTask | TextToTextTask,
    Field(discriminator="name"),
]


class OptimPhase(Frozen):
    """Another learning rate and weight decay from a step on, as population-based training finds them.

    Attributes:
        from_step: Optimizer steps done when it begins.
    """

    from_step: Positive
    lr: Annotated[float, Field(gt=0.0)]
    weight_decay: Annotated[float, Field(ge=0.0)]


class OptimConfig(Frozen):
    """AdamW (decoupled weight decay), its schedule and gradient clipping; all per slot of a pack.

    Attributes:
        warmup_steps: Steps of linear warm-up from 0 before the schedule.
        schedule: Shape of the learning rate after the warm-up, over the full length of the run.
        restarts: Steps at which the schedule has come to its end and begins anew (warm restarts), in
            rising order; empty: one schedule over the full length.
        phases: Learning rates and weight decays that replace `lr` and `weight_decay` in the course of
            the run, in rising order; the shape of the schedule stays.
        clip_norm: Largest global gradient norm, or null for no clipping.
    """

    lr: Annotated[float, Field(gt=0.0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0.0)] = 1e-4
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    eps: Annotated[float, Field(gt=0.0)] = 1e-8
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    restarts: tuple[Positive, ...] = ()
    phases: tuple[OptimPhase, ...] = ()
    clip_norm: Annotated[float, Field(gt=0.0)] | None = 1.0

    @model_validator(mode="after")
    def _steps_rise(self) -> OptimConfig:
        for name, steps in (
            ("restarts", self.restarts),
            ("phases", [each.from_step for each in self.phases]),
        ):
            if list(steps) != sorted(set(steps)):
                raise ValueError(
                    f"optim.{name} must be at rising steps, but got {', '.join(map(str, steps))}"
                )
        return self


class TrainConfig(Frozen):
    """Length and batching of the run.

    Attributes:
        steps: Optimizer steps.
        batch: Examples per optimizer step.
        micro_batch: Examples per forward pass (gradient accumulation); null means `batch`.
        eval_every: Steps between evaluations on the validation split; the last step always evaluates.
        checkpoint_every: Steps between checkpoints of a trial.
        precision: Of the base and the activations; adapters and optimizer stay in fp32 (fp64 in fp64).
    """

    steps: Positive = 200
    batch: Positive = 16
    micro_batch: Positive | None = None
    eval_every: Positive = 50
    checkpoint_every: Positive = 100
    precision: Literal["fp32", "fp64", "bf16"] = "fp32"

    @model_validator(mode="after")
    def _micro_batch_divides_batch(self) -> TrainConfig:
        if self.micro_batch is not None and self.batch % self.micro_batch:
            raise ValueError(
                f"train.micro_batch must divide train.batch, but got {self.micro_batch} and {self.batch}"
            )
        return self


class EngineConfig(Place):
    """The processes of a run (or pack), and what they share among them (docs/engine.md).

    Attributes:
        ranks: Processes, each on its own GPU or cores; each takes its share of the micro-batches of every
            step, so `ranks * train.micro_batch` must divide `train.batch`.
        zero: DeepSpeed's ZeRO stage: 0 none; 1 shares the optimizer's state among the ranks; 2 also the
            gradients; 3 also the frozen base.
        offload: What lies in the host's memory: nothing, the `optimizer`'s state (stage 1 and up), or that
            and the `base` (stage 3).
        recompute: Activations are computed again in the backward pass, block by block.
    """

    ranks: Positive = 1
    zero: Literal[0, 1, 2, 3] = 0
    offload: Literal["none", "optimizer", "base"] = "none"
    recompute: bool = False


class RunConfig(Frozen):
    """One training run: everything that can change its result, and, in `engine`, how it is computed."""

    backbone: BackboneConfig = BackboneConfig()
    method: MethodConfig = ReploraMethod()
    task: TaskConfig = DigitsTask()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    engine: EngineConfig = EngineConfig()
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
