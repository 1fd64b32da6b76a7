"""`replora doctor` on this machine: findings, remedies, exit status."""

from __future__ import annotations

import argparse
import json
import pickle
import socket
import subprocess
import sys
from pathlib import Path

from cluster.doctor.examine import DOCTOR, Examination, examine
from replora.verbs import Answer

ROOT = Path(__file__).parents[3]


def doctor(*arguments: str) -> Answer:
    """The verb's answer."""
    parser = argparse.ArgumentParser()
    DOCTOR.configure(parser)
    return DOCTOR.run(parser.parse_args(arguments))


def test_a_fit_machine_has_status_0(tmp_path: Path) -> None:
    answer = doctor("--dir", str(tmp_path))
    assert answer.status == 0
    assert answer.text.endswith("This machine is fit.")


def test_what_makes_running_impossible_has_status_3_and_a_remedy(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    answer = doctor("--dir", str(tmp_path), "--mlflow", f"http://127.0.0.1:{port}")
    assert answer.status == 3
    assert "Start it, or correct MLFLOW_TRACKING_URI" in answer.text


def test_the_document_says_whether_the_machine_is_fit(tmp_path: Path) -> None:
    document = doctor("--dir", str(tmp_path)).document
    assert isinstance(document, dict)
    assert document["fit"] is True
    assert {"python", "packages", "memory", "runs"} <= {each["name"] for each in document["findings"]}
    json.dumps(document)


def test_an_examination_can_be_sent_to_another_node_and_its_findings_home(tmp_path: Path) -> None:
    what = pickle.loads(pickle.dumps(Examination(tmp_path)))
    findings = examine(what)
    assert pickle.loads(pickle.dumps(findings)) == findings


def test_an_examination_imports_neither_torch_nor_ray(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from cluster.doctor.examine import Examination, examine;"
        "examine(Examination(Path(sys.argv[1]))); assert {'torch', 'ray', 'mlflow'}.isdisjoint(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
