"""`replora show`: a run's resolved configuration, its name, its size."""

from __future__ import annotations

import argparse
from typing import Any

import yaml

from replora.config import RunConfig
from replora.fingerprint import fingerprint, group_fingerprint
from replora.load import load_run
from replora.models.shapes import shapes_of
from replora.parameters import run_parameters
from replora.reading.compose import find_run
from replora.tasks import TASKS
from replora.verbs import Answer, Verb

__all__ = ["SHOW", "add_run_arguments", "describe", "describe_text", "run_of"]

_BYTES = {"fp32": 4, "fp64": 8, "bf16": 2}
#: Classes that a task always has, 0 for one without a head; those of a folder are known once
#: it is read.
_CLASSES = {"digits": 5, "text-to-text": 0}
_CLASSES |= dict.fromkeys((name for name in TASKS if name.startswith("commonsense")), 0)


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """The run file and its overrides, the same for every verb that takes a run."""
    parser.add_argument("run", metavar="RUN.yaml", help="a run file, a sweep's best.yaml, or a recipe's name")
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="key.path=value",
        help="laid over the file, e.g. optim.lr=1e-3",
    )


def run_of(options: argparse.Namespace) -> RunConfig:
    """The run that the arguments name, checked against its backbone where that is known.

    Raises:
        ConfigError: With every fault.
    """
    return load_run(find_run(options.run), options.overrides)


def describe(config: RunConfig) -> dict[str, Any]:
    """A run as JSON-able facts; counts are null where only building the backbone would tell."""
    facts: dict[str, Any] = {
        "config": config.model_dump(mode="json"),
        "fingerprint": fingerprint(config),
        "group_fingerprint": group_fingerprint(config),
    }
    names = ("trainable_parameters", "base_parameters", "head_parameters", "percent_of_base", "memory_bytes")
    shape = shapes_of(config.backbone.name)
    if shape is None:
        return facts | dict.fromkeys(names)
    base = shape.base_parameters
    trained = run_parameters(config) or 0
    classes = _CLASSES.get(config.task.name)
    head = None if classes is None else classes * (shape.width + 1)
    memory = _memory_bytes(config, base, trained + (head or 0))
    return facts | dict(
        zip(names, (trained, base, head, round(100 * trained / base, 4), memory), strict=True)
    )


def describe_text(facts: dict[str, Any]) -> str:
    """The same facts for a person."""
    lines = [yaml.safe_dump(facts["config"], sort_keys=False, default_flow_style=None).rstrip(), ""]
    lines += [f"{name.ljust(22)}{value}" for name, value in _size_rows(facts)]
    return "\n".join(lines)


def _size_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [("fingerprint", facts["fingerprint"])]
    if facts["base_parameters"] is None:
        return [*rows, ("parameters", "known once the backbone is built")]
    head, memory = facts["head_parameters"], facts["memory_bytes"]
    base, training = (f"{memory[part] / 2**20:,.1f} MiB" for part in ("base", "training"))
    share = f"{facts['percent_of_base']:.2f} % of the base"
    return [
        *rows,
        ("trainable parameters", f"{facts['trainable_parameters']:,} ({share})"),
        ("head parameters", "known once the data is read" if head is None else f"{head:,}"),
        ("base parameters", f"{facts['base_parameters']:,}"),
        ("memory", f"{base} for the base, {training} for what trains, and activations"),
    ]


def _memory_bytes(config: RunConfig, base: int, trained: int) -> dict[str, int]:
    """Bytes that the base and the training state take; activations come on top.

    A trained number has a value, a gradient and AdamW's two moments, in fp32 (fp64 in fp64).
    """
    trained_bytes = 4 * (8 if config.train.precision == "fp64" else 4)
    return {"base": base * _BYTES[config.train.precision], "training": trained * trained_bytes}


def _run(options: argparse.Namespace) -> Answer:
    facts = describe(run_of(options))
    return Answer(facts, describe_text(facts))


SHOW = Verb("show", "resolve a run: configuration, parameters, memory, fingerprint", add_run_arguments, _run)
