"""Freed memory stays in a process that trains, and goes back when it is asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from replora import cli
from replora.commands import VERBS
from replora.train import heap
from replora.verbs import Answer, Verb

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="both heaps are Linux's")

#: Takes 128 MiB in blocks as large as activations, frees them, gives them back; resident MiB each time.
KEEPS = """
import json, re, sys
from pathlib import Path
from replora.train import heap

def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024

heap.keep_freed()
found = [heap.heap_here(), resident()]
blocks = [b"x" * 2**20 for _ in range(128)]
found.append(resident())
del blocks
found.append(resident())
heap.give_back()
print(json.dumps([*found, resident()]))
"""


@pytest.mark.parametrize("name", ["jemalloc", "glibc"])
def test_freed_memory_is_kept_until_it_is_given_back(name: str) -> None:
    extra = heap.environment() if name == "jemalloc" else {}
    run = subprocess.run(
        [sys.executable, "-c", KEEPS], env={**os.environ, **extra}, capture_output=True, text=True, check=True
    )
    served, before, full, freed, given = json.loads(run.stdout)
    assert served == name
    assert full > before + 120
    assert freed > full - 8
    assert given < before + 32


def test_a_program_starts_again_once_with_its_arguments() -> None:
    code = "import sys; from replora.train import heap; heap.start_again(); print(heap.heap_here(), sys.argv)"
    run = subprocess.run([sys.executable, "-c", code, "a b"], capture_output=True, text=True, check=True)
    assert run.stdout == f"{heap.heap_of_trials()} ['-c', 'a b']\n"
    assert heap.heap_of_trials() == "jemalloc"


def test_a_heap_that_a_person_has_preloaded_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/opt/libtcmalloc.so")
    assert heap.environment() == {}


def test_only_a_program_of_its_own_that_trains_starts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[str] = []
    trains = Verb("fit", "", lambda parser: None, lambda call: Answer({}, ""), trains=lambda call: True)
    monkeypatch.setattr(cli, "VERBS", (*VERBS, trains))
    monkeypatch.setattr(heap, "start_again", lambda: starts.append("again"))
    cli.main(["fit"])
    assert starts == []
    monkeypatch.setattr(sys, "argv", ["replora", "ls"])
    cli.main()
    assert starts == []
    monkeypatch.setattr(sys, "argv", ["replora", "fit"])
    cli.main()
    assert starts == ["again"]
