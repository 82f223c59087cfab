"""What a job on Kubernetes asks for, beside what it asks for wherever it runs."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from data_prep.shard_set.fields import Limit, within, wrong
from data_prep.shard_set.options import Named
from launch.spec import AnyJob, Conversion, Training

_LONGEST_NAME = 40
"""Pods' host names have it, the numbers of job and pod, and a suffix, in 63 characters."""

_NAME = re.compile(rf"[a-z](?:[-a-z0-9]{{0,{_LONGEST_NAME - 2}}}[a-z0-9])?")
_DNS = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"
_DOMAIN = rf"{_DNS}(?:\.{_DNS})*"
_WORD = r"[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_LABEL = re.compile(rf"((?:{_DOMAIN}/)?{_WORD})=((?:{_WORD})?)")
_CLAIM = re.compile(rf"({_DOMAIN}):(/[^/:\0][^:\0]*)")
_QUANTITY = re.compile(r"[1-9][0-9]{0,15}(?:[kMGTP]|[KMGTP]i)?")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]*")
_OWN_LABELS = "app.kubernetes.io/"
_TAKEN = ("/dev/shm", "/tmp")  # noqa: S108 - of a pod's own


@dataclass(frozen=True, kw_only=True, slots=True)
class KubernetesSpec(AnyJob):
    """What jobs of every kind ask for. Raises `ValueError` for what Kubernetes could not mean."""

    namespace: Annotated[
        str | None, Limit("small letters, digits and '-'", re.compile(_DNS).fullmatch)
    ] = None
    """The objects' namespace; if not given, that of kubectl."""
    claims: Annotated[tuple[str, ...], Named("--claim", "NAME:/FOLDER")] = ()
    """A persistent volume claim, and the folder by which containers see it; may be given again."""
    labels: Annotated[tuple[str, ...], Named("--label", "KEY=VALUE")] = ()
    """A label of all objects, such as that of a queue; may be given again."""
    memory: Annotated[str | None, Limit("a number of bytes such as 64Gi", _QUANTITY.fullmatch)] = (
        None
    )
    """Memory of a pod, with what is in its /dev/shm; if not given, as the cluster has it."""
    user_id: Annotated[int, within(1, 2**31 - 1)] = 1000
    """Number of the user and group that containers run as, and that owns new files; not root."""
    file: Annotated[Path | None, Named("--to", "FILE")] = None
    """The file to write; if not given, standard output."""

    def __post_init__(self) -> None:
        AnyJob.__post_init__(self)
        if not _NAME.fullmatch(self.job_name):
            expected = f"up to {_LONGEST_NAME} small letters, digits and '-', the first a letter"
            raise wrong("--job-name", f"'{self.job_name}'", expected)
        if self.container is None:
            raise ValueError("--container is missing: give the image that has the project")
        if not _IMAGE.fullmatch(self.container) or self.container.endswith(".sif"):
            expected = "an image of a registry, such as registry.example.org/alexnet:0.1.0"
            raise wrong("--container", f"'{self.container}'", expected)
        for label in self.labels:
            if not _LABEL.fullmatch(label) or label.startswith(_OWN_LABELS):
                expected = f"KEY=VALUE of a label that does not begin with {_OWN_LABELS}"
                raise wrong("--label", f"'{label}'", expected)
        for claim in self.claims:
            match = _CLAIM.fullmatch(claim)
            if match is None or os.path.normpath(match[2]) != match[2] or match[2] in _TAKEN:
                expected = "a claim and a folder of its own, such as shards:/data"
                raise wrong("--claim", f"'{claim}'", expected)
        if len(self.folders) < len(self.claims):
            raise ValueError("--claim gives two claims for one folder: leave one out")

    @property
    def folders(self) -> Mapping[str, str]:
        """The claim of each folder."""
        return {folder: name for name, _, folder in (each.partition(":") for each in self.claims)}

    @property
    def given_labels(self) -> dict[str, str]:
        return {key: value for key, _, value in (label.partition("=") for label in self.labels)}

    def check_is_mounted(self, option: str, path: Path) -> None:
        """Raise `ValueError` if no claim has the path: what is written there is lost."""
        place = PurePosixPath(os.path.normpath(path))
        if not any(place.is_relative_to(folder) for folder in self.folders):
            raise ValueError(
                f"{option} is {path}, where the container has no claim: give a path in the folder "
                "of a --claim NAME:/FOLDER"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainPods(KubernetesSpec, Training):
    """A training on Kubernetes."""

    kind: Literal["job", "trainjob"] = "job"
    """An Indexed Job, or a TrainJob of Kubeflow Trainer with its TrainingRuntime."""
    pod_monitor: bool = True
    """Add a PodMonitor, by which a Prometheus operator finds the exporters."""

    def __post_init__(self) -> None:
        KubernetesSpec.__post_init__(self)
        self.check_training()

    @property
    def num_ranks(self) -> int:
        """Of a pod."""
        return self.ranks_per_node or self.gpus_per_node


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparePods(KubernetesSpec, Conversion):
    """Pods that convert a data set together."""

    job_name: str = "alexnet-prepare"
    """The jobs' name."""
