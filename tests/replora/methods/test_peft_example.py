"""The example that users start from runs as it stands."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from examples.train_with_peft import main


def test_the_example_trains_saves_loads_and_merges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train_with_peft.py", str(tmp_path)])
    assert main() == 0
    assert "agree with what was trained" in capsys.readouterr().out
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
