"""The objects of jobs on Kubernetes, as YAML: pure functions of a spec and a command."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

from launch.kubernetes_spec import KubernetesSpec, PreparePods, TrainPods
from launch.templates import as_yaml, fill
from pipeline.config.timeouts import SHUTDOWN_VARIABLE
from pipeline.run.directory import RunDirectory
from pipeline.run.ending import ExitCode

_PORT = 29500
"""Where pods meet; each has a network of its own."""

_INDEX = "$(JOB_COMPLETION_INDEX)"
_HOME = "/tmp"  # noqa: S108 - of a pod's own


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pods:
    """What the pods of one job do."""

    name: str
    component: str
    command: Sequence[str]
    number: int
    gpus: int = 0
    shutdown_seconds: int | None = None
    """What torchrun gives its ranks to save."""
    grace_seconds: int = 30
    """From SIGTERM to SIGKILL."""
    port: int | None = None
    """That of the exporter."""
    is_suspended: bool = False


def render_training(
    spec: TrainPods, arguments: Sequence[str], run: RunDirectory, port: int | None
) -> list[str]:
    """The objects of a training; `arguments` are those of `pipeline.train`.

    `port` is that of its exporters; None if it has none.
    """
    name = spec.job_name
    is_alone = spec.nodes == 1
    match spec.kind:
        case "job":
            host, files = f"{name}-0.{name}", ["job.yaml.in"]
            files[:0] = [] if is_alone else ["service.yaml.in"]
        case "trainjob":
            host, files = f"{name}-node-0-0.{name}", ["train-job.yaml.in"]
        case unknown:
            assert_never(unknown)
    if port is not None and spec.pod_monitor:
        files.append("pod-monitor.yaml.in")
    launcher = [spec.interpreter, "-m", "launch", "local", f"--nproc={spec.num_ranks}"]
    launcher += [f"--max-restarts={spec.max_restarts}", f"--nodes={spec.nodes}"]
    meeting = [] if is_alone else [f"--node-rank={_INDEX}", f"--rendezvous={host}:{_PORT}"]
    pods = _Pods(
        name=name,
        component="train",
        command=[*_literal(launcher), *meeting, *_literal(arguments)],
        number=spec.nodes,
        gpus=spec.gpus_per_node,
        shutdown_seconds=spec.shutdown_seconds,
        grace_seconds=spec.signal_lead_seconds,
        port=port,
    )
    folder = os.path.normpath(run.path)  # not of this host: no link in it can be followed
    labels = map(as_yaml, _literal([folder.rpartition("/")[2], folder]))
    values = _values(spec, pods) | dict(zip(("run", "run_dir"), labels, strict=True))
    return [_filled(file, values) for file in files]


def render_conversion(spec: PreparePods, arguments: Sequence[str], shards: str) -> list[str]:
    """A Job with a part of the conversion in each pod, and one that merges the parts.

    The second is suspended: Kubernetes has no jobs that wait for others.
    """
    module = [spec.interpreter, "-m", "data_prep"]
    part = [f"--num-tasks={spec.array_size}", f"--task={_INDEX}", f"--workers={spec.cpus_per_task}"]
    converting = _Pods(
        name=spec.job_name,
        component="prepare",
        command=[*_literal([*module, "shard", *arguments]), *part],
        number=spec.array_size,
    )
    merging = _Pods(
        name=f"{spec.job_name}-merge",
        component="merge",
        command=_literal([*module, "merge", shards]),
        number=1,
        is_suspended=True,
    )
    return [_filled("job.yaml.in", _values(spec, pods)) for pods in (converting, merging)]


def _literal(words: Sequence[str]) -> list[str]:
    """The words of a command in which Kubernetes, or a relabeling, replaces nothing."""
    return [word.replace("$", "$$") for word in words]


def _filled(file: str, values: dict[str, str]) -> str:
    """The template; what a Job is, in a template of its own, stands in it deeper or less deep."""
    job = fill("indexed-job.yaml.in", **values)
    depth = 14 if file == "train-job.yaml.in" else 2
    return fill(file, **values, job=textwrap.indent(job, " " * depth).rstrip())


def _values(spec: KubernetesSpec, pods: _Pods) -> dict[str, str]:
    """What the templates of all objects have in common."""
    selector = {"app.kubernetes.io/name": "alexnet", "app.kubernetes.io/instance": pods.name}
    labels = {**selector, "app.kubernetes.io/component": pods.component, **spec.given_labels}
    place = {} if spec.namespace is None else {"namespace": spec.namespace}
    # A user whose number the image does not know has no home, and no name for torch's caches.
    environment = {"HOME": _HOME, "USER": "alexnet"}
    if pods.shutdown_seconds is not None:
        environment[SHUTDOWN_VARIABLE] = str(pods.shutdown_seconds)
    limits = {"cpu": str(spec.cpus_per_task)}
    if spec.memory is not None:
        limits["memory"] = spec.memory
    if pods.gpus:
        limits["nvidia.com/gpu"] = str(pods.gpus)
    claims = {f"claim-{number}": folder for number, folder in enumerate(spec.folders)}
    mounts = {"shm": "/dev/shm", "tmp": _HOME, **claims}  # noqa: S108 - of a pod's own
    volumes = [
        {"name": "shm", "emptyDir": {"medium": "Memory"}},  # else it has 64 MB
        {"name": "tmp", "emptyDir": {}},
        *(
            {"name": name, "persistentVolumeClaim": {"claimName": spec.folders[folder]}}
            for name, folder in claims.items()
        ),
    ]
    values = {
        "again": int(ExitCode.STOPPED),
        "command": pods.command,
        "environment": [{"name": name, "value": value} for name, value in environment.items()],
        "grace_seconds": pods.grace_seconds,
        "image": spec.container,
        "labels": labels,
        "limits": limits,
        "metadata": {"name": pods.name, **place, "labels": labels},
        "mounts": [{"name": name, "mountPath": folder} for name, folder in mounts.items()],
        "name": pods.name,
        "number": pods.number,
        "port": _PORT,
        "ports": [{"name": "metrics", "containerPort": pods.port}] if pods.port else [],
        "selector": selector,
        "suspend": pods.is_suspended,
        "user": spec.user_id,
        "volumes": volumes,
    }
    return {name: as_yaml(value) for name, value in values.items()}
