"""Rendered jobs: the same text as before, text that its readers accept, and no secret in it.

After a change that is meant, `python -m tests.cluster.launch.test_render` writes the golden files anew;
read the difference.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.launch.cloud import Cloud
from cluster.launch.job import Job, job_name
from cluster.launch.render import cloud_file, ray_command, rayjob_manifest, slurm_script
from replora.errors import ConfigError
from tests.cluster.launch.jobs import job

GOLDEN = Path(__file__).parent / "golden"
RENDERED: dict[str, Callable[[], str]] = {
    "two-nodes.slurm": lambda: slurm_script(job()),
    "one-cpu-node.slurm": lambda: slurm_script(job(nodes=1, gpus=0, cpus=4, partition=None, account=None)),
    "rayjob.yaml": lambda: re.sub(r"rayVersion: .*", "rayVersion: VERSION", rayjob_manifest(job())),
    "spot-rayjob.yaml": lambda: re.sub(
        r"rayVersion: .*", "rayVersion: VERSION", rayjob_manifest(job(spot="cloud.google.com/gke-spot=true"))
    ),
    "aws.yaml": lambda: cloud_file(cloud_job()),
    "gcp.yaml": lambda: cloud_file(gcp_job()),
    "ray.txt": lambda: shlex.join(ray_command(job())) + "\n",
}


def cloud_job(**changes: Any) -> Job:
    """A job for spot machines of AWS."""
    cloud = Cloud(instance="p4d.24xlarge", storage="fs-1.example:/")
    return job(**{"cloud": cloud, "image": None, **changes})


def gcp_job() -> Job:
    """A job for spot machines of Google Cloud, with the environment on Filestore."""
    image = "projects/lab/global/images/family/gpu"
    cloud = Cloud("gcp", project="lab", zone="c", instance="a2-ultragpu-8g", storage="10.0.0.2:/share")
    return job(cloud=cloud, image=image)


SECRET = "hunter2-in-the-environment"


@pytest.mark.parametrize("name", RENDERED)
def test_rendered_text_is_the_golden_one(name: str) -> None:
    assert RENDERED[name]() == (GOLDEN / name).read_text()


@pytest.mark.parametrize("name", ["two-nodes.slurm", "one-cpu-node.slurm"])
def test_bash_can_read_the_script(name: str) -> None:
    done = subprocess.run(["bash", "-n"], input=RENDERED[name](), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_no_line_of_a_script_keeps_a_field_open() -> None:
    assert "@{" not in slurm_script(job())
    assert "@{" not in rayjob_manifest(job())


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
def test_a_cloud_file_is_one_that_ray_up_accepts(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    document = yaml.safe_load(RENDERED[name]())
    whole = prepare_config(document)
    validate_config(whole)
    assert not any("pip install" in line for line in whole["head_setup_commands"]), "Ray's own defaults do"
    assert whole["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    starts = [*document["head_start_ray_commands"], *document["worker_start_ray_commands"]]
    assert all("RAY_AUTH_MODE=token" in line for line in starts if " start " in line)


def test_workers_of_a_cloud_are_spot_machines_and_the_head_is_not() -> None:
    def machines(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        types = yaml.safe_load(RENDERED[name]())["available_node_types"]
        return types["head"]["node_config"], types["workers"]["node_config"]

    head, worker = machines("aws.yaml")
    assert worker["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in head
    head, worker = machines("gcp.yaml")
    assert worker["scheduling"]["provisioningModel"] == "SPOT"
    assert worker["scheduling"]["instanceTerminationAction"] == "DELETE"
    assert "scheduling" not in head


def test_a_cloud_job_lacks_nothing_that_its_nodes_need() -> None:
    with pytest.raises(ConfigError, match="--instance is needed") as caught:
        job(environment=Path("/home/me/env"), cloud=Cloud("gcp"), image=None).check("cloud")
    text = str(caught.value)
    assert all(f"{option} is needed" in text for option in ("--storage", "--project", "--image"))
    assert "--env must lie under /shared" in text


def test_spot_workers_run_on_labelled_machines_and_the_head_does_not() -> None:
    cluster = manifest(spot="cloud.google.com/gke-spot=true")["spec"]["rayClusterSpec"]
    worker = cluster["workerGroupSpecs"][0]["template"]["spec"]
    assert worker["nodeSelector"] == {"cloud.google.com/gke-spot": "true"}
    assert {"key": "cloud.google.com/gke-spot", "operator": "Exists"} in worker["tolerations"]
    assert "nodeSelector" not in cluster["headGroupSpec"]["template"]["spec"]


def test_every_option_of_sbatch_comes_before_the_first_command() -> None:
    lines = slurm_script(job()).splitlines()
    options = [number for number, line in enumerate(lines) if line.startswith("#SBATCH")]
    commands = [number for number, line in enumerate(lines) if line and not line.startswith("#")]
    assert max(options) < min(commands)


def manifest(**changes: Any) -> dict[str, Any]:
    """A rendered manifest as data."""
    document: dict[str, Any] = yaml.safe_load(rayjob_manifest(job(**changes)))
    return document


def test_a_manifest_asks_for_a_token_and_for_every_gpu() -> None:
    cluster = manifest()["spec"]["rayClusterSpec"]
    group = cluster["workerGroupSpecs"][0]
    resources = group["template"]["spec"]["containers"][0]["resources"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert group["replicas"] == 2
    assert resources["limits"] == {"cpu": "64", "memory": "512Gi", "nvidia.com/gpu": "8"}


def test_pods_of_a_cpu_job_ask_for_no_gpu() -> None:
    group = manifest(gpus=0)["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    assert "nvidia.com/gpu" not in group["template"]["spec"]["containers"][0]["resources"]["limits"]


def test_every_pod_mounts_the_claim_and_gets_mlflow_from_a_secret() -> None:
    cluster = manifest()["spec"]["rayClusterSpec"]
    templates = [cluster["headGroupSpec"]["template"], cluster["workerGroupSpecs"][0]["template"]]
    for template in templates:
        (container,) = template["spec"]["containers"]
        by_name = {each["name"]: each for each in container["env"]}
        assert by_name["MLFLOW_TRACKING_URI"]["valueFrom"]["secretKeyRef"]["name"] == "replora-mlflow"
        assert {"name": "shared", "mountPath": "/shared"} in container["volumeMounts"]
        assert template["spec"]["volumes"][0]["persistentVolumeClaim"] == {"claimName": "lab-data"}


@pytest.mark.parametrize("name", RENDERED)
def test_no_secret_of_the_environment_is_rendered(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("RAY_AUTH_TOKEN", "MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_PASSWORD", "HF_TOKEN"):
        monkeypatch.setenv(variable, SECRET)
    assert SECRET not in RENDERED[name]()


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "a; rm -rf ~"},
        {"name": "-leading"},
        {"config": Path("/shared/$(reboot).yaml")},
        {"folder": Path("/shared/a b")},
        {"folder": Path("relative")},
        {"environment": Path("/env\n#SBATCH --uid=0")},
        {"time": "1:00:00\n#SBATCH --uid=0"},
        {"partition": "gpu --uid=0"},
        {"account": "`id`"},
        {"spot": "gke-spot: true"},
        {"cloud": Cloud(storage="host:/x; reboot")},
        {"address": "http://me:password@head:8265"},
        {"nodes": 0},
        {"cpus": 0},
        {"gpus": -1},
        {"memory_gib": -1},
    ],
    ids=str,
)
def test_a_word_that_a_shell_could_read_otherwise_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="must be"):
        job(**changes).check("ray")


def test_every_fault_of_a_job_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        job(name="A", image=None, claim=None, folder=Path("/elsewhere")).check("kuberay")
    text = str(caught.value)
    assert all(part in text for part in ("name must be", "--image", "--claim", "--dir must lie under"))


def test_a_run_is_no_sweep(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("task: digits\n")
    with pytest.raises(ConfigError, match="replora train"):
        job(config=config).check("slurm")


def test_a_sweep_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="is not a file"):
        job(config=Path("/nowhere/grid.yaml")).check("slurm")


@pytest.mark.parametrize("stem", ["Grid_of 5x5", "9", "x" * 80, "ü"])
def test_names_made_from_files_are_valid(stem: str) -> None:
    name = job_name(Path(f"/a/{stem}.yaml"))
    job(name=name).check("ray")


if __name__ == "__main__":
    for golden, render in RENDERED.items():
        (GOLDEN / golden).write_text(render())
