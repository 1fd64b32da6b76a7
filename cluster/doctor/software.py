"""Python, packages, the GPU's driver: what must be installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from cluster.doctor.finding import Finding, bad, doubtful, good

__all__ = ["check_gpu", "check_packages", "check_python", "check_torch", "gpus", "visible_gpus"]

OLDEST_PYTHON = (3, 11)
#: Beside the packages of a checkout; a wheel does not carry it.
CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
_DRIVER_S = 10.0
_NAME = re.compile(r"[A-Za-z0-9._-]+")
_BOUND = re.compile(r"(>=|<)\s*([0-9]+(?:\.[0-9]+)*)")
_INSTALL = "Run `make env`, or pip install -c constraints.txt the package."


def check_python() -> Finding:
    """The interpreter is new enough."""
    shown = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < OLDEST_PYTHON:
        return bad("python", f"Python {shown}", "Install Python 3.11 or newer and make the environment anew.")
    return good("python", f"Python {shown} in {sys.prefix}")


def check_packages() -> Finding:
    """What the project requires is there, in the required ranges and at the pinned versions."""
    missing, wrong = [], []
    for name, bounds in _requirements():
        installed = _version(name)
        if installed is None:
            missing.append(name)
        elif not all(_holds(installed, sign, bound) for sign, bound in bounds):
            wrong.append(
                f"{name} {installed} (needs {', '.join(f'{sign}{bound}' for sign, bound in bounds)})"
            )
    if missing or wrong:
        faults = [f"{name} is missing" for name in missing] + wrong
        return bad("packages", "; ".join(faults), _INSTALL)
    moved = [f"{name} {there} (tested: {pin})" for name, there, pin in _unpinned()]
    if moved:
        return doubtful("packages", "; ".join(moved), _INSTALL)
    return good("packages", f"{len(list(_requirements()))} required packages, in their ranges")


def check_gpu() -> Finding:
    """GPUs and their driver, as nvidia-smi tells."""
    rows = gpus()
    if rows is None:
        text = "nvidia-smi does not answer, though the driver's program is installed"
        return bad("gpu", text, "Load or repair the NVIDIA driver (dmesg says why), or remove it.")
    if not rows:
        return good("gpu", "none; trials run on the CPU")
    return good("gpu", "; ".join(rows))


def gpus() -> list[str] | None:
    """Name, memory and driver of each GPU; None where the driver does not answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=_DRIVER_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.split("\n")[:-1] if done.returncode == 0 else None


def visible_gpus() -> list[str]:
    """Names of the GPUs that this process may use, found without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    try:
        return [str(index) for index, _ in enumerate(Path("/proc/driver/nvidia/gpus").iterdir())]
    except OSError:
        return []


def check_torch() -> Finding:
    """Torch imports and sees the GPUs that the driver sees; takes seconds."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return bad("torch", f"cannot be imported: {error}", _INSTALL)
    seen, there = torch.cuda.device_count() if torch.cuda.is_available() else 0, len(gpus() or [])
    text = f"torch {torch.__version__} sees {seen} of {there} GPUs"
    if seen < there:
        remedy = "Check CUDA_VISIBLE_DEVICES, and that the driver is new enough for this torch's CUDA."
        return (bad if seen == 0 else doubtful)("torch", text, remedy)
    return good("torch", text)


def _requirements() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Required packages of this project with their bounds, extras left out."""
    for line in metadata.requires("replora") or []:
        found = _NAME.match(line)
        if found is not None and "extra ==" not in line:
            yield found[0], _BOUND.findall(line.partition(";")[0])


def _unpinned() -> Iterator[tuple[str, str, str]]:
    """Required packages whose version is not the one of constraints.txt."""
    if not CONSTRAINTS.is_file():
        return
    pins = dict(line.split("==") for line in CONSTRAINTS.read_text().splitlines() if "==" in line)
    pins = {name.lower(): pin for name, pin in pins.items()}
    for name, _ in _requirements():
        there, pin = _version(name), pins.get(name.lower())
        if there is not None and pin is not None and there.partition("+")[0] != pin:
            yield name, there, pin


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _holds(installed: str, sign: str, bound: str) -> bool:
    there, limit = _numbers(installed), _numbers(bound)
    length = max(len(there), len(limit))
    there, limit = (each + (0,) * (length - len(each)) for each in (there, limit))
    return there >= limit if sign == ">=" else there < limit


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else (0,)
