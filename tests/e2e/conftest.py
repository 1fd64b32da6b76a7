"""Fixtures of tests that kill what they started."""

from __future__ import annotations

from collections.abc import Iterator

import psutil
import pytest


@pytest.fixture
def orphans() -> Iterator[list[psutil.Process]]:
    """Processes that a killed driver left; whatever still runs at the end of a test is ended."""
    left: list[psutil.Process] = []
    yield left
    for process in left:
        if process.is_running():
            process.kill()
