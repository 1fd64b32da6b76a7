"""A cluster file for `ray up` on AWS or Google Cloud: a head on demand, spot workers, shared storage.

Fields of a machine are the provider's own: EC2's `create_instances`, and Compute Engine's `instances.insert`
(https://cloud.google.com/compute/docs/reference/rest/v1/instances/insert), which Ray passes on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Cloud", "Provider", "Word"]

Provider = Literal["aws", "gcp"]
#: Option, value, what it must match, and that in words.
Word = tuple[str, object, re.Pattern[str], str]

_WORD = re.compile(r"[A-Za-z0-9._-]{1,100}")
_STORAGE = re.compile(r"[A-Za-z0-9.-]+:/[A-Za-z0-9._/-]*")
#: Of the machine that holds the driver, 8 CPUs and 32 GiB (choice; edit the file).
_HEADS = {"aws": "m6i.2xlarge", "gcp": "n2-standard-8"}
_REGIONS = {"aws": "us-west-2", "gcp": "us-central1"}
#: Of a machine's own disk on Google Cloud, in GB (choice: the environment lies on the shared storage).
_DISK_GB = 100
#: EFS speaks NFS 4.1 (known); Filestore speaks NFS 3 in every tier, 4.1 in some, so the client chooses.
_MOUNT = {"aws": "nfsvers=4.1,hard,noresvport", "gcp": "hard"}


@dataclass(frozen=True)
class Cloud:
    """Where the machines are rented.

    Attributes:
        provider: Whose they are.
        project: Of Google Cloud.
        region: None: a usual one.
        zone: Letter of the region's zone.
        instance: Type of the worker machines.
        storage: NFS export that every node mounts, `server:/path`: EFS, Filestore, or your own.
    """

    provider: Provider = "aws"
    project: str | None = None
    region: str | None = None
    zone: str = "a"
    instance: str | None = None
    storage: str | None = None

    def words(self) -> list[Word]:
        """What is written into the file, with its form."""
        return [
            ("--project", self.project, _WORD, "letters, digits, ., _ and -"),
            ("--region", self.region, _WORD, "letters, digits, ., _ and -"),
            ("--zone", self.zone, _WORD, "letters, digits, ., _ and -"),
            ("--instance", self.instance, _WORD, "letters, digits, ., _ and -"),
            ("--storage", self.storage, _STORAGE, "server:/path of an NFS export"),
        ]

    def faults(self, image: str | None) -> Iterator[str]:
        """What the provider needs and was not given."""
        if self.instance is None:
            example = "p4d.24xlarge" if self.provider == "aws" else "a2-ultragpu-8g"
            yield f"  --instance is needed: the worker machines' type, for example {example}."
        if self.storage is None:
            yield "  --storage is needed: server:/path of an NFS export that every node mounts."
        if self.provider == "gcp" and self.project is None:
            yield "  --project is needed: the id of your project on Google Cloud."
        if self.provider == "gcp" and image is None:
            yield (
                "  --image is needed: a boot image of Ubuntu or Debian with the GPU's driver, written as "
                "projects/PROJECT/global/images/family/FAMILY (gcloud compute images list)."
            )

    @property
    def place(self) -> dict[str, Any]:
        """The file's `provider`."""
        region = self.region or _REGIONS[self.provider]
        if self.provider == "aws":
            zone = f"{region}{self.zone}"
            return {"type": "aws", "region": region, "availability_zone": zone}
        zone = f"{region}-{self.zone}"
        return {"type": "gcp", "region": region, "availability_zone": zone, "project_id": self.project}

    @property
    def mount_options(self) -> str:
        """Of the shared storage."""
        return _MOUNT[self.provider]

    def head(self, image: str | None) -> dict[str, Any]:
        """The head's machine, on demand: it holds the driver."""
        return self._machine(_HEADS[self.provider], image)

    def worker(self, image: str | None, gpus: int) -> dict[str, Any]:
        """A spot machine; one that is taken away is given up, and Ray asks for another."""
        machine = self._machine(self.instance, image)
        if self.provider == "aws":
            return {**machine, "InstanceMarketOptions": {"MarketType": "spot"}}
        machine["scheduling"] = {
            "provisioningModel": "SPOT",
            "instanceTerminationAction": "DELETE",
            "onHostMaintenance": "TERMINATE",
            "automaticRestart": False,
        }
        if gpus:  # Google's own images install the driver where they find this
            machine["metadata"] = {"items": [{"key": "install-nvidia-driver", "value": "True"}]}
        return machine

    def _machine(self, kind: str | None, image: str | None) -> dict[str, Any]:
        if self.provider == "aws":
            return {"InstanceType": kind} | ({"ImageId": image} if image else {})
        disk = {"diskSizeGb": _DISK_GB, "sourceImage": image}
        boot = {"boot": True, "autoDelete": True, "type": "PERSISTENT", "initializeParams": disk}
        return {"machineType": kind, "disks": [boot]}
