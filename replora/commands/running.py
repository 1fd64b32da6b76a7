"""`replora train`, `eval`, `export` and `import`: one run from start to hand-over."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from replora.commands.showing import add_run_arguments, describe, describe_text, run_of
from replora.config import RunConfig
from replora.errors import ConfigError, DataError
from replora.reading.compose import find_run
from replora.reading.document import read_document
from replora.train.events import Event, Reported
from replora.verbs import Answer, Verb

__all__ = ["EVAL", "EXPORT", "IMPORT", "TRAIN"]


def _configure_train(parser: argparse.ArgumentParser) -> None:
    add_run_arguments(parser)
    parser.add_argument(
        "--dir", type=Path, metavar="D", help="folder of the run (default: runs/train/<fingerprint>)"
    )
    parser.add_argument(
        "--test",
        action=argparse.BooleanOptionalAction,
        help="read the test split once, at the end (default: only for a sweep's best.yaml)",
    )


def _train(options: argparse.Namespace) -> Answer:
    config = run_of(options)
    facts = describe(config)
    folder: Path = options.dir or Path("runs", "train", facts["fingerprint"])
    test: bool = _is_best(find_run(options.run)) if options.test is None else options.test
    if options.dry_run:
        plan = f"would train {config.train.steps} steps in {folder}" + (
            " and read the test split" if test else ""
        )
        document = {"run_dir": str(folder), "dry_run": True, "test": test, **facts}
        return Answer(document, f"{describe_text(facts)}\n{plan}")
    _require_data(config)
    from replora.train.loop import train

    result = train(config, folder, test=test, on_event=_progress)
    document = {
        "run_dir": str(result.run_dir),
        "metrics": result.metrics,
        "seconds": result.seconds,
        "fingerprint": result.fingerprint,
    }
    return Answer(
        document, f"{_metrics(result.metrics)}\nTrained in {result.seconds:.1f} s: {result.run_dir}"
    )


def _require_data(config: RunConfig) -> None:
    """Raises before weights are fetched and read if the folder of the task's data is not there."""
    root = getattr(config.task, "root", None)
    if isinstance(root, Path) and not root.expanduser().is_dir():
        raise DataError(f"task.root: {root} is not a folder.\n  Name your data's folder: task.root=FOLDER")


def _is_best(path: Path) -> bool:
    """Whether a file is a sweep's hand-over, whose training is the final run."""
    data = read_document(path).data
    return isinstance(data, dict) and {"run", "provenance"} <= data.keys()


def _progress(event: Event) -> None:
    if isinstance(event, Reported):
        values = "  ".join(
            f"{name} {value:.4g}" for name, value in event.metrics.items() if name != "seconds"
        )
        sys.stderr.write(f"step {event.step}  {values}\n")


def _configure_eval(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="folder of a finished run or trial")
    parser.add_argument("--split", choices=("val", "test"), default="val", help="default: %(default)s")


def _evaluate(options: argparse.Namespace) -> Answer:
    _require_folder(options.run_dir)
    from replora.train.loop import evaluate

    metrics = evaluate(options.run_dir, options.split)
    document = {"run_dir": str(options.run_dir), "split": options.split, "metrics": metrics}
    return Answer(document, _metrics(metrics))


def _configure_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="folder of a finished run or trial")
    parser.add_argument(
        "--as",
        dest="form",
        choices=("peft-lora", "peft", "merged", "replora"),
        required=True,
        help="a LoRA folder for stock PEFT, the method itself for PEFT (docs/peft.md), the backbone with the "
        "update merged in, or our own format",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder")


def _export(options: argparse.Namespace) -> Answer:
    _require_folder(options.run_dir)
    from replora.methods.exchange.folders import export

    export(options.run_dir, options.form, options.out)
    document = {"run_dir": str(options.run_dir), "form": options.form, "out": str(options.out)}
    return Answer(document, f"Exported as {options.form}: {options.out}")


def _configure_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("peft_dir", type=Path, metavar="PEFT_DIR", help="what save_pretrained wrote")
    add_run_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder of a run")


def _import(options: argparse.Namespace) -> Answer:
    run = run_of(options)
    from replora.methods.exchange.folders import import_peft

    import_peft(options.peft_dir, run, options.out)
    document = {"peft_dir": str(options.peft_dir), "run_dir": str(options.out)}
    return Answer(document, f"Imported: {options.out}. `replora eval {options.out}` evaluates it.")


def _require_folder(folder: Path) -> None:
    if not (folder / "adapter").is_dir():
        why = "it has no adapter yet" if folder.is_dir() else "there is no such folder"
        raise ConfigError(
            f"{folder} is not a folder of a finished run: {why}.\n"
            "  `replora train` prints the folder that it makes; a sweep's are in its trials/<fingerprint>."
        )


def _metrics(metrics: Mapping[str, float]) -> str:
    width = max(map(len, metrics), default=0)
    return "\n".join(f"{name.ljust(width)}  {value:.6g}" for name, value in metrics.items())


TRAIN = Verb(
    "train", "train one run", _configure_train, _train, spends=True, trains=lambda call: not call.dry_run
)
EVAL = Verb(
    "eval", "evaluate a finished run on a split", _configure_eval, _evaluate, trains=lambda call: True
)
EXPORT = Verb("export", "write a finished run's adapter for other programs", _configure_export, _export)
IMPORT = Verb("import", "make a run's folder of an adapter of PEFT", _configure_import, _import)
