"""After `replora train best.yaml` the final run stands in the sweep's ledger, report and MLflow, once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from replora.errors import LedgerError
from sweeps.best import select
from sweeps.final import record_final
from sweeps.handover import best_document, write_best
from sweeps.ledger import Ledger, read_ledger, read_lines
from sweeps.report import summary
from tests.sweeps.simulated import SimulatedHost, grid, run
from tests.sweeps.tracked import runs_at


@pytest.fixture
def best(tmp_path: Path, mlflow_schema: Path) -> Path:
    """The hand-over of a finished sweep, outside of its folder."""
    folder = tmp_path / "sweep"
    view = run(folder, grid(confirm={"top": 1, "seeds": (1, 2)}), SimulatedHost(3)).view
    with Ledger.open(folder) as ledger:
        view.apply(ledger.append("closed", state="done"))
    shutil.copy(mlflow_schema, folder / "mlflow.db")
    write_best(tmp_path / "best.yaml", best_document(select(view), [folder], [view]))
    return tmp_path / "best.yaml"


def trained(best: Path, **metrics: float) -> dict[str, object]:
    """The answer of `replora train`."""
    name = select(read_ledger(best.parent / "sweep")).best
    assert name is not None
    values = {"accuracy": 0.9, **metrics}
    fingerprint = name.group.search[0].fingerprint
    return {"fingerprint": fingerprint, "run_dir": "final", "metrics": values, "seconds": 1.0}


def finals(folder: Path) -> int:
    return sum(line["event"] == "final" for line in read_lines(folder))


def test_the_final_run_is_recorded_once(best: Path) -> None:
    folder = best.parent / "sweep"
    updated = read_ledger(folder).updated
    for _ in range(2):
        words = record_final(str(best), trained(best, test_accuracy=0.75))
        assert words.startswith("The final run is recorded below its trial: MLflow (sqlite:")
    assert finals(folder) == 1
    view = read_ledger(folder)
    assert view.updated == updated
    assert f"final     test_accuracy 0.7500 ({Path('final').absolute()})" in summary(
        view, select(view), folder
    )
    assert "Final run: test_accuracy 0.7500" in (folder / "report.html").read_text()
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    assert sum(each.data.tags["kind"] == "final" for each in runs_at(uri)) == 1


def test_other_runs_are_not_recorded(best: Path) -> None:
    other = trained(best, test_accuracy=0.75) | {"fingerprint": "0" * 16}
    assert record_final(str(best), other) == ""  # an override made it another run
    assert record_final(str(best), trained(best)) == ""  # not tested
    assert record_final("vit-digits-digits-replora", trained(best, test_accuracy=0.75)) == ""
    assert finals(best.parent / "sweep") == 0


def test_a_sweep_that_is_driven_is_left_alone_and_says_so(best: Path) -> None:
    with (
        Ledger.open(best.parent / "sweep"),
        pytest.raises(LedgerError, match="the final run is not recorded beside its sweep"),
    ):
        record_final(str(best), trained(best, test_accuracy=0.75))
