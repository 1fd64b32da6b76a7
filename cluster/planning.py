"""`replora plan`: what fits on given hardware, and what would have to change."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from typing import Any, get_args

from cluster.calibration import calibrate, remembered
from cluster.hardware import load_hardware
from cluster.memory import GIB, Offload, Setting, memory_of, trained_parameters
from cluster.planner import Candidate, Pins, Plan, count, engine_of, engine_words, plan
from replora.commands.showing import add_run_arguments, run_of
from replora.config import RunConfig
from replora.errors import ConfigError
from replora.verbs import Answer, Verb, table

__all__ = ["PLAN", "plan_document"]

_COLUMNS = ("zero", "gpus", "offload", "recompute", "micro_batch", "slots", "gib", "fits")


def plan_document(config: RunConfig, found: Plan) -> dict[str, Any]:
    """A plan as JSON-able facts; memory in GiB on each GPU."""
    memory = found.chosen.memory
    return {
        "hardware": found.hardware.name,
        "memory_gib": round(found.hardware.place_gib, 2),
        "base_parameters": found.anatomy.base_parameters,
        "trainable_parameters": trained_parameters(config, found.anatomy),
        "kept": found.hardware.kept,
        "setting": asdict(found.chosen.setting),
        "needed_gib": round(found.chosen.needed_gib, 2),
        "model_gib": round(memory.model / GIB, 2),
        "host_gib": round(memory.host / GIB, 2),
        "parts_gib": {name: round(value / GIB, 3) for name, value in memory.parts().items()},
        "engine": engine_of(found.chosen.setting),
        "overrides": overrides(config, found.chosen.setting),
        "easier": None if found.easier is None else {"eval_batch": found.easier[0], **found.easier[1].row()},
        "trials_at_once": found.trials_at_once,
        "considered": [candidate.row() for candidate in found.considered],
    }


def _configure(parser: argparse.ArgumentParser) -> None:
    add_run_arguments(parser)
    parser.add_argument(
        "--hardware", required=True, metavar="PROFILE", help="a name of `replora ls profiles`, or a YAML file"
    )
    parser.add_argument("--tokens", type=int, metavar="N", help="of one example, where the data decides")
    parser.add_argument("--slots", default="auto", metavar="K", help="trials of a pack, or auto (default)")
    parser.add_argument("--micro-batch", type=int, metavar="N", help="examples of a pass; else chosen")
    parser.add_argument("--zero", type=int, choices=(0, 1, 2, 3), help="ZeRO stage; else chosen")
    parser.add_argument("--gpus", type=int, metavar="N", help="GPUs of one trial; else chosen")
    parser.add_argument("--offload", choices=get_args(Offload), help="to the host's memory; else chosen")
    parser.add_argument(
        "--recompute",
        action=argparse.BooleanOptionalAction,
        help="compute activations again in the backward pass; else chosen",
    )
    parser.add_argument(
        "--calibrate",
        action="store_true",
        help="train a few steps here first, so that the heap's share is measured (remembered in the cache)",
    )


def _run(options: argparse.Namespace) -> Answer:
    config, hardware = run_of(options), load_hardware(options.hardware)
    if options.calibrate:
        calibrate(config)
    if hardware.kept is None:
        hardware = hardware.model_copy(
            update={"kept": remembered(config, hardware.device, hardware.trial_heap)}
        )
    pins = Pins(options.zero, options.gpus, options.micro_batch, options.recompute, options.offload)
    found = plan(config, hardware, _slots(options.slots), tokens=options.tokens, pins=pins)
    return Answer(plan_document(config, found), plan_text(config, found))


def _slots(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdigit() or int(text) < 1:
        raise ConfigError(f"--slots must be a number from 1, or auto, but got {text!r}.")
    return int(text)


def plan_text(config: RunConfig, found: Plan) -> str:
    """The same for a person."""
    hardware, chosen = found.hardware, found.chosen
    place = count(hardware.gpus, "GPU") if hardware.gpus else count(hardware.places, "core")
    memory = f"of {hardware.place_gib:.1f} GiB each" if hardware.gpus else f"on {hardware.place_gib:.1f} GiB"
    trained = trained_parameters(config, found.anatomy)
    lines = [
        f"{config.backbone.name}, {config.method.name}: {found.anatomy.base_parameters:,} parameters, "
        f"{trained:,} trained",
        f"{hardware.name}: {place} {memory}",
        "",
        f"Chosen: {_sentence(chosen)}; {count(found.trials_at_once, 'trial')} at once on this machine.",
        f"Needs {chosen.needed_gib:.1f} GiB on each: {_parts(chosen)}.",
    ]
    if hardware.kept is not None:
        lines.append(f"A calibration found the heap to hold {hardware.kept:.0%} of a pass on top.")
    if chosen.memory.host:
        lines.append(f"Needs {chosen.memory.host / GIB:.1f} GiB of the host's memory for each GPU.")
    if words := overrides(config, chosen.setting):
        lines.append(f"To train like this: {' '.join(words)}")
    if chosen.setting.slots > 1:
        lines.append(f"In a sweep: resources.slots={chosen.setting.slots}")
    lines += _idle_zero(config, found)
    if found.easier:
        size, better = found.easier
        trials = count(found.trials_with(better), "trial")
        lines.append(f"With task.eval_batch={size} it would be: {_sentence(better)}; {trials} at once.")
    rows = [{**each.row(), "fits": "yes" if each.fits else "no"} for each in found.considered]
    rows = [{**row, "recompute": "yes" if row["recompute"] else "no"} for row in rows]
    return "\n".join([*lines, "", table(rows, _COLUMNS)])


def _idle_zero(config: RunConfig, found: Plan) -> list[str]:
    """Says that the asked ZeRO-1 or 2 holds no less than as many GPUs without, where that is so."""
    setting = found.chosen.setting
    if setting.stage not in (1, 2):
        return []
    without = replace(setting, stage=0, offload="none")
    hardware = found.hardware
    memory = memory_of(config, found.anatomy, without, hardware.device, hardware.kept, hardware.trial_heap)
    if memory.total > found.chosen.memory.total:
        return []
    over = f"no ZeRO over {count(setting.ranks, 'GPU')} needs {memory.total / GIB:.1f} GiB"
    return [f"ZeRO-{setting.stage} saves no memory here: {over}, in the same setting (docs/engine.md)."]


def overrides(config: RunConfig, setting: Setting) -> list[str]:
    """What has to be laid over a run so that it is trained in a setting, as a person types it."""
    wanted = {f"engine.{key}": value for key, value in engine_of(setting).items()}
    present: dict[str, object] = {f"engine.{key}": value for key, value in config.engine.model_dump().items()}
    wanted = {"train.micro_batch": setting.micro_batch, **wanted}
    present["train.micro_batch"] = config.train.micro_batch or config.train.batch
    changed = {key: value for key, value in wanted.items() if value != present[key]}
    return [f"{key}={str(value).lower()}" for key, value in changed.items()]


def _sentence(candidate: Candidate) -> str:
    setting = candidate.setting
    over = f" over {count(setting.ranks, 'GPU')}" if setting.stage or setting.ranks > 1 else ""
    engine = engine_words(setting) + over
    offload = "" if setting.offload == "none" else f", {setting.offload} offloaded"
    again = "recomputed" if setting.recompute else "kept"
    return (
        f"{engine}{offload}, micro-batch {setting.micro_batch} of {setting.tokens} tokens, "
        f"activations {again}, packs of {setting.slots}"
    )


def _parts(candidate: Candidate) -> str:
    shown = [(name, value / GIB) for name, value in candidate.memory.parts().items()]
    return ", ".join(f"{name} {value:.2f}" for name, value in shown if value >= 0.005)


PLAN = Verb("plan", "predict a run's memory and fit it to hardware", _configure, _run)
