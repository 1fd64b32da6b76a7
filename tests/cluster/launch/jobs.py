"""Jobs and the programs of clusters, for tests of launching."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster.launch.job import Job


def job(**changes: Any) -> Job:
    """A job whose every word is fixed, so that its text is."""
    fields: dict[str, Any] = {
        "name": "replora-grid",
        "config": Path("/shared/grid.yaml"),
        "folder": Path("/shared/runs/grid"),
        "nodes": 2,
        "gpus": 8,
        "cpus": 64,
        "memory_gib": 512,
        "environment": Path("/shared/env"),
        "partition": "gpu",
        "account": "lab",
        "image": "registry.example/replora:0.1",
        "claim": "lab-data",
    }
    return Job(**{**fields, **changes})


def fake_program(folder: Path, name: str, script: str) -> Path:
    """A program of a cluster that does what a line of shell says; gives its file."""
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text(f"#!/bin/bash\n{script}\n")
    program.chmod(0o755)
    return program
