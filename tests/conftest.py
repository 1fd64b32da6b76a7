"""What every test stands on: one thread, no network, no telemetry, one cache for the whole session.

`make test` runs the files on two processes (pytest-xdist). They share the cache (pre-trained weights,
MLflow's schema, what was measured), which the product guards; everything else is a process's own.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.needs import missing

# Before anything imports numpy, torch, ray or mlflow; child processes inherit them.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


@pytest.fixture(scope="session", autouse=True)
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The product's cache: one for all processes of a session, never the user's own."""
    base = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        if "REPLORA_CACHE" not in os.environ:
            whole = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
            patch.setenv("REPLORA_CACHE", str(whole / "cache"))
        yield Path(os.environ["REPLORA_CACHE"])


@pytest.fixture(autouse=True)
def torch_as_it_was() -> Iterator[None]:
    """Give the next test torch's thread count, default type and determinism as this one found them."""
    torch = sys.modules.get("torch")
    before = (torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled()) if torch else None
    yield
    torch = sys.modules.get("torch")
    if torch is None:
        return
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)
    dtype, deterministic = before or (torch.float32, False)
    torch.set_default_dtype(dtype)
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of the headless browser; a machine of CI must have it."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    return path or missing("chromium is not installed: apt-get install chromium")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that no process is left alone with one; no GPU test without a GPU."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    _skip_without_gpu(items)


def _skip_without_gpu(items: list[pytest.Item]) -> None:
    """Torch is imported only when such a test is there."""
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
