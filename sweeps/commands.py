"""The verbs of a sweep: `sweep`, `resume`, `best`, `sync`. Nothing heavy is imported here."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replora.errors import ConfigError
from replora.verbs import Answer, Follower, Verb, nearest
from sweeps.doctoring import DOCTOR

if TYPE_CHECKING:
    from sweeps.config import SweepConfig
    from sweeps.run import SweepResult

__all__ = ["SPACES", "VERBS", "list_spaces"]

SPACES = Path(__file__).parent / "spaces"
MAX_PREVIEW = 10  # trials that a dry run shows to a person


def list_spaces() -> list[dict[str, Any]]:
    """The sweeps that come with the package, for `replora ls spaces`."""
    rows = []
    for path in sorted(SPACES.glob("*.yaml")):
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        rows.append({"name": path.stem, "summary": first.removeprefix("#").strip(), "path": str(path)})
    return rows


def find_space(name: str) -> Path:
    """The file that a user means: a path, or the name of a sweep that comes with the package.

    Raises:
        ConfigError: If it is neither, or a run.
    """
    from replora.reading.compose import recipe_names

    if Path(name).is_file():
        _refuse_run(Path(name))
        return Path(name)
    names = [path.stem for path in sorted(SPACES.glob("*.yaml"))]
    if name in recipe_names():
        raise ConfigError(f"{name} is a run, not a sweep.\n  {_instead(name)}")
    if name not in names:
        hint = f"{nearest(name, names)}Sweeps: {', '.join(names)}."
        raise ConfigError(f"{name} is neither a file nor a sweep of this package.\n  {hint}")
    return SPACES / f"{name}.yaml"


def _refuse_run(path: Path) -> None:
    """Raises if a file without a space holds what only a run, or the answer of a sweep, has."""
    from replora.config import RunConfig
    from replora.reading.document import read_document

    data = read_document(path).data
    if (
        isinstance(data, dict)
        and "space" not in data
        and data.keys() & {*RunConfig.model_fields, "provenance"}
    ):
        raise ConfigError(f"{path} is a run, not a sweep: it has no space.\n  {_instead(str(path))}")


def _instead(run: str) -> str:
    return f"Use `replora train {run}`, or name it under `run: {{extends: ...}}` of a sweep."


def _configure_sweep(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sweep", metavar="SWEEP.yaml", help="a sweep file, or a name of `replora ls spaces`")
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="key.path=value",
        help="laid over the file, e.g. search.trials=10",
    )
    parser.add_argument("--dir", type=Path, metavar="D", help="folder of the sweep (default: runs/<name>)")
    parser.add_argument(
        "--in-process", action="store_true", help="train in this process, without Ray (backend=in-process)"
    )


def _sweep(options: argparse.Namespace) -> Answer:
    from replora.load import load
    from sweeps.check import idle_settings, sweep_faults
    from sweeps.config import SweepConfig

    overrides = [*options.overrides, *(["backend=in-process"] if options.in_process else [])]
    config = load(SweepConfig, find_space(options.sweep), overrides, sweep_faults)
    for text in idle_settings(config):
        warnings.warn(text, stacklevel=1)
    folder: Path = options.dir or Path("runs", config.name)
    if options.dry_run:
        return _dry_run(config, folder)
    from sweeps.run import run_sweep

    return _answer(run_sweep(config, folder))


def _dry_run(config: SweepConfig, folder: Path) -> Answer:
    """What a sweep would do, without torch and without Ray."""
    from dataclasses import asdict

    from sweeps.calibration import remembered_layout
    from sweeps.placement import placed
    from sweeps.preview import memory_document, memory_text, packs_of, preview
    from sweeps.resources import trials_planned
    from sweeps.warm import warm_preview

    placement = placed(config, remembered_layout(config))
    layout = placement.layout
    planned, trials = trials_planned(config), preview(config)
    packs = packs_of(trials)
    earlier = list(warm_preview(config))
    document = {
        "sweep_dir": str(folder),
        "dry_run": True,
        "warm_start": earlier,
        "trials": trials,
        "trials_planned": planned,
        "plan": {
            "backend": config.backend,
            **asdict(layout),
            "packs": packs,
            "memory": memory_document(placement),
        },
        "seconds": None,
        "best": None,
    }
    lines = [
        f"Sweep {config.name}: {planned} trials of {config.run.train.steps} steps at most, in {folder}",
        f"Plan: {layout.hosts} hosts x {layout.slots} slots x {layout.threads} threads, "
        f"backend {config.backend}; time unknown before something has run",
        memory_text(placement),
        *(_packs(packs) if len(packs) > 1 else ()),
        *(f"  {_point(row)}" for row in trials[:MAX_PREVIEW]),
    ]
    if len(trials) > MAX_PREVIEW:
        lines.append(f"  ... and {len(trials) - MAX_PREVIEW} more (--json lists all)")
    lines += [f"  {text}" for text in earlier]
    if not trials:
        lines.append(f"  {config.search.name} proposes the configurations while the sweep runs")
    return Answer(document, "\n".join(lines))


def _packs(packs: list[dict[str, Any]]) -> Iterator[str]:
    yield f"Packs: trials of {len(packs)} kinds, which cannot share one; they take turns on a host"
    for pack in packs:
        point = "  ".join(f"{key}={value}" for key, value in pack["point"].items())
        yield f"  {pack['trials']} x {point}"


def _point(row: dict[str, Any]) -> str:
    from sweeps.report.words import number

    values = "  ".join(f"{key}={number(value)}" for key, value in row["point"].items())
    return f"{row['fingerprint']}  {values}  seed={row['seed']}"


def _configure_resume(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", type=Path, metavar="DIR", help="folder of the sweep")
    parser.add_argument(
        "--accept-changes",
        action="store_true",
        help="go on although code, versions or sweep.yaml changed; the ledger records it",
    )


def _resume(options: argparse.Namespace) -> Answer:
    if options.dry_run:
        from sweeps.ledger import read_ledger

        view = read_ledger(options.dir)
        left = sum(not trial.ended for trial in view.trials.values())
        ended = len(view.trials) - left
        text = f"{ended} trials have ended; {left} would go on or start, then those that are not asked yet."
        return Answer(
            {"sweep_dir": str(options.dir), "dry_run": True, "left": left, "closed": view.closed}, text
        )
    from sweeps.run import resume_sweep

    return _answer(resume_sweep(options.dir, accept_changes=options.accept_changes))


def _answer(result: SweepResult) -> Answer:
    from sweeps.handover import sweep_document
    from sweeps.report import summary

    document = sweep_document(result.folder, result.view, result.best)
    text = summary(result.view, result.selection, result.folder)
    return Answer(document, text, status=0 if result.best else 1)


def _configure_best(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "dirs", type=Path, nargs="+", metavar="DIR", help="folders of sweeps with one objective"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write the answer there (default: DIR/best.yaml)"
    )
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="METRIC<=NUMBER",
        help="with several objectives: the best in the first one within this limit, instead of the knee",
    )


def _best(options: argparse.Namespace) -> Answer:
    from replora.errors import RunFailedError
    from sweeps.best import select
    from sweeps.chosen import parse_limit, within
    from sweeps.handover import BEST_NAME, best_document, write_best
    from sweeps.ledger import read_ledger

    views = [read_ledger(folder) for folder in options.dirs]
    selection = within(select(views), [parse_limit(text) for text in options.where])
    if selection.best is None:
        raise RunFailedError(
            f"no configuration of {', '.join(map(str, options.dirs))} was trained to its end yet.\n"
            f"  `replora resume {options.dirs[0]}` goes on with it, or says why its trials failed."
        )
    document = best_document(selection, options.dirs, views)
    single = options.dirs[0] / BEST_NAME if len(options.dirs) == 1 else None
    path = options.out or single
    if path is not None:
        write_best(path, document)
    return Answer(document, _best_text(document, path))


def _best_text(document: dict[str, Any], path: Path | None) -> str:
    import yaml

    names = ("run", "objective", "chosen", "front", "not_distinguishable_count", "compared")
    shown = {name: document[name] for name in names if name in document}
    tail = f"Written: {path}" if path else "Give --out FILE to write it for `replora train`."
    return f"{yaml.safe_dump(shown, sort_keys=False)}{tail}"


def _configure_sync(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", type=Path, metavar="DIR", help="folder of the sweep")
    parser.add_argument(
        "--uri", metavar="URI", help="MLflow's tracking URI (default: the one recorded before)"
    )


def _sync(options: argparse.Namespace) -> Answer:
    from dataclasses import asdict

    from sweeps.mlflow_recorder import sync

    found = sync(options.dir, options.uri)
    text = f"{found.points} metric values of {found.trials} runs are in MLflow: {found.uri}"
    return Answer(asdict(found), "\n".join([text, *found.refused]), status=1 if found.refused else 0)


def _configure_study(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", type=Path, metavar="DIR", help="folder of the sweep, finished or not")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="Optuna's journal file (default: DIR/study.log)"
    )


def _export_study(options: argparse.Namespace) -> Answer:
    import shlex

    from sweeps.config import SearchConfig
    from sweeps.search import STUDY_NAME, check_installed, write_study

    check_installed(SearchConfig(name="optuna", trials=1))
    path: Path = options.out or options.dir / STUDY_NAME
    count = write_study(options.dir, path)
    look = f"Look at them (pip install optuna-dashboard):\n  optuna-dashboard {shlex.quote(str(path))}"
    return Answer({"study": str(path), "trials": count}, f"{count} trials are in {path}. {look}")


def _record_final(options: argparse.Namespace, answer: Answer) -> str:
    """After `replora train`: the final run of a sweep belongs beside its trials."""
    if options.dry_run:
        return ""
    from sweeps.final import record_final

    assert isinstance(answer.document, dict)
    return record_final(options.run, answer.document)


VERBS: tuple[Verb | Follower, ...] = (
    Verb(
        "sweep",
        "run a sweep",
        _configure_sweep,
        _sweep,
        spends=True,
        trains=lambda call: call.in_process and not call.dry_run,
    ),
    Verb("resume", "go on with a sweep that was cut off", _configure_resume, _resume, spends=True),
    Verb("best", "the best configuration of one or several sweeps", _configure_best, _best),
    Verb("export-study", "a sweep as an Optuna study, for optuna-dashboard", _configure_study, _export_study),
    Verb("sync", "replay a sweep's ledger into MLflow", _configure_sync, _sync),
    DOCTOR,
    Follower("train", _record_final),
)
