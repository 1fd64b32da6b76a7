"""The program `replora`: finds the verbs, runs one, prints its answer and returns its status."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import NoReturn

from replora.commands import VERBS
from replora.errors import ConfigError, MachineError, ReploraError
from replora.offers import offers
from replora.train import heap
from replora.verbs import Answer, Follower, Verb, nearest

__all__ = ["main"]

_INTERRUPTED = 130
#: Environment variable that shows where an error of the operating system came from.
_TRACEBACK = "REPLORA_TRACEBACK"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line.

    Args:
        arguments: Without the program's name; None takes the process's own.

    Returns:
        0 done, 1 a run failed, 2 the configuration is wrong, 3 the machine is not fit, 130 interrupted.
    """
    _open_closed_streams()
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with _warnings_in_one_line():
            return _dispatch(words, is_program=arguments is None)
    except ReploraError as error:
        _note(f"{type(error).__name__}: {error}")
        return error.exit_status
    except KeyboardInterrupt:
        _note("Interrupted.")
        return _INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # The reader of our output left; Python flushes at exit.
        return 1
    except OSError as error:
        if os.environ.get(_TRACEBACK):
            raise
        hint = "Name a place that is there and that you may write to, or make room"
        _note(f"{type(error).__name__}: {error}\n  {hint}; {_TRACEBACK}=1 shows where it came from.")
        return MachineError.exit_status


Offered = Sequence[tuple[str, Verb | Follower]]


def find_verbs(offered: Offered | None = None) -> dict[str, Verb]:
    """Every verb by name: this package's own, then those that other packages offer as entry points.

    Raises:
        MachineError: If two packages offer a verb of the same name.
    """
    found = {verb.name: verb for verb in VERBS}
    for package, verb in _offered() if offered is None else offered:
        if isinstance(verb, Verb) and found.setdefault(verb.name, verb) is not verb:
            raise MachineError(f"two packages offer the verb {verb.name}; one of them is {package}.")
    return found


def _offered() -> Offered:
    """What other packages offer, each with the package's name."""
    return [(package, item) for package, items in offers("replora.commands") for item in items]


def _follow(offered: Offered, verb: Verb, options: argparse.Namespace, answer: Answer) -> None:
    """Lets other packages do what they have to do after a verb."""
    for _, follower in offered:
        if isinstance(follower, Follower) and follower.verb == verb.name:
            try:
                words = follower.run(options, answer)
            except (ReploraError, OSError) as error:  # the verb has done what it was asked for
                words = f"{type(error).__name__}: {error}"
            if words:
                _note(words)


def _dispatch(words: list[str], *, is_program: bool) -> int:
    offered = _offered()
    verbs = find_verbs(offered)
    if not words or words[0] in ("-h", "--help", "help"):
        sys.stdout.write(_overview(verbs))
        return 0 if words else ConfigError.exit_status
    if words[0] in ("-V", "--version"):
        sys.stdout.write(f"replora {metadata.version('replora')}\n")
        return 0
    verb = verbs.get(words[0])
    if verb is None:
        names = ", ".join(sorted(verbs))
        raise ConfigError(f"{words[0]!r} is not a verb.\n  {nearest(words[0], verbs)}Verbs: {names}.")
    try:
        options = _parser(verb).parse_intermixed_args(words[1:])
    except SystemExit as stop:  # argparse ends so after --help.
        return int(stop.code or 0)
    if is_program and verb.trains(options):
        heap.start_again()
    with _stdout_for_the_answer(options.json):
        answer = verb.run(options)
    _print(answer, options.json)
    if _leads() and answer.status == 0:
        with _stdout_for_the_answer(options.json):
            _follow(offered, verb, options, answer)
    return answer.status


class _Parser(argparse.ArgumentParser):
    """Raises what is wrong with the arguments instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog}: {message}.\n  {' '.join(self.format_usage().split())}")


def _parser(verb: Verb) -> argparse.ArgumentParser:
    parser = _Parser(prog=f"replora {verb.name}", description=verb.summary, allow_abbrev=False)
    verb.configure(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    if verb.spends:
        parser.add_argument(
            "--dry-run", action="store_true", help="check everything, say what would be done, stop"
        )
    return parser


def _overview(verbs: dict[str, Verb]) -> str:
    width = max(map(len, verbs))
    lines = [f"  {name.ljust(width)}  {verb.summary}" for name, verb in verbs.items()]
    return "\n".join(
        [
            "usage: replora VERB [arguments] [key.path=value ...] [--json] [--dry-run]",
            "",
            *lines,
            "",
            "`replora VERB --help` says more.",
            "",
        ]
    )


def _print(answer: Answer, as_json: bool) -> None:
    text = json.dumps(_finite(answer.document), allow_nan=False) if as_json else answer.text
    if text and _leads():
        sys.stdout.write(text.rstrip("\n") + "\n")
        sys.stdout.flush()


def _open_closed_streams() -> None:
    """Gives a process without stdin, stdout or stderr ones that lead nowhere.

    Else the next file that is opened, a ledger for example, would take the number of stdout or stderr, and
    whatever a library prints would go into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number: this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8", closefd=False))


def _leads() -> bool:
    """Under torchrun, rank 0 answers for all."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def _finite(value: object) -> object:
    """The value with null for NaN and infinities, which JSON does not have."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {key: _finite(below) for key, below in value.items()}
        case list() | tuple():
            return [_finite(below) for below in value]
    return value


@contextlib.contextmanager
def _stdout_for_the_answer(active: bool) -> Iterator[None]:
    """Sends what libraries and their processes print to stdout to stderr, so that the answer stands alone."""
    if not active:
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


@contextlib.contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Shows our warnings as a person reads them, without the place in the code."""
    show = warnings.showwarning

    def short(message: Warning | str, category: type[Warning], *where: object) -> None:
        if category is UserWarning:
            _note(f"Warning: {message}")
        else:
            show(message, category, *where)  # type: ignore[arg-type]

    warnings.showwarning = short  # type: ignore[assignment]
    try:
        yield
    finally:
        warnings.showwarning = show


def _note(text: str) -> None:
    sys.stderr.write(text.encode("utf-8", "backslashreplace").decode() + "\n")
