"""What a test needs of the machine: skipped with its reason on a person's machine, a failure in CI."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

__all__ = ["missing"]


def missing(reason: str) -> NoReturn:
    """Skips the test, or fails it in CI, whose script installs all that can be installed.

    Args:
        reason: What is missing and how to get it.
    """
    if os.environ.get("CI"):
        pytest.fail(f"{reason}; .ci/run should have provided it", pytrace=False)
    pytest.skip(reason)
