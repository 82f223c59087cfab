"""The objects of jobs on Kubernetes, as YAML: pure functions of a spec and a command."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

from launch.kubernetes_spec import KubernetesSpec, PreparePods, TrainPods
from launch.templates import as_yaml, fill
from pipeline.run.directory import RunDirectory
from pipeline.run.ending import ExitCode

_PORT = 29500
"""Where pods meet; each has a network of its own."""

_INDEX = "$(JOB_COMPLETION_INDEX)"
_HOME = "/tmp"


@dataclass(frozen=True, kw_only=True, slots=True)
class Pods:
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
    match spec.kind:
        case "job":
            host = f"{name}-0.{name}"
        case "trainjob":
            host = f"{name}-node-0-0.{name}"
        case unknown:
            assert_never(unknown)
    launcher = [spec.interpreter, "-m", "launch", "local", f"--nproc={spec.num_ranks}"]
    launcher += [f"--max-restarts={spec.max_restarts}", f"--nodes={spec.nodes}"]
    meeting = [f"--node-rank={_INDEX}", f"--rendezvous={host}:{_PORT}"] if spec.nodes > 1 else []
    pods = Pods(
        name=name,
        component="train",
        command=[*_literal(launcher), *meeting, *_literal(arguments)],
        number=spec.nodes,
        gpus=spec.gpus_per_node,
        shutdown_seconds=spec.shutdown_seconds,
        grace_seconds=spec.signal_lead_seconds,
        port=port,
    )
    monitors = [] if port is None or not spec.pod_monitor else [_pod_monitor(spec, pods, run)]
    match spec.kind:
        case "job":
            services = [_service(spec, pods)] if spec.nodes > 1 else []
            return [*services, _job(spec, pods), *monitors]
        case "trainjob":
            return [_train_job(spec, pods), *monitors]
        case unknown:
            assert_never(unknown)


def render_conversion(spec: PreparePods, arguments: Sequence[str], shards: str) -> list[str]:
    """A Job with a part of the conversion in each pod, and one that merges the parts.

    The second is suspended: Kubernetes has no jobs that wait for others.
    """
    module = [spec.interpreter, "-m", "data_prep"]
    part = [f"--num-tasks={spec.array_size}", f"--task={_INDEX}", f"--workers={spec.cpus_per_task}"]
    converting = Pods(
        name=spec.job_name,
        component="prepare",
        command=[*_literal([*module, "shard", *arguments]), *part],
        number=spec.array_size,
    )
    merging = Pods(
        name=f"{spec.job_name}-merge",
        component="merge",
        command=_literal([*module, "merge", shards]),
        number=1,
        is_suspended=True,
    )
    return [_job(spec, converting), _job(spec, merging)]


def _literal(words: Sequence[str]) -> list[str]:
    """The words of a command in which Kubernetes, or a relabeling, replaces nothing."""
    return [word.replace("$", "$$") for word in words]


def _selector(pods: Pods) -> dict[str, str]:
    return {"app.kubernetes.io/name": "alexnet", "app.kubernetes.io/instance": pods.name}


def _labels(spec: KubernetesSpec, pods: Pods) -> dict[str, str]:
    return {**_selector(pods), "app.kubernetes.io/component": pods.component, **spec.given_labels}


def _metadata(spec: KubernetesSpec, pods: Pods) -> str:
    place = {} if spec.namespace is None else {"namespace": spec.namespace}
    return as_yaml({"name": pods.name, **place, "labels": _labels(spec, pods)})


def _indexed_job(spec: KubernetesSpec, pods: Pods) -> str:
    """The content of a Job."""
    # A user whose number the image does not know has no home, and no name for torch's caches.
    environment = {"HOME": _HOME, "USER": "alexnet"}
    if pods.shutdown_seconds is not None:
        environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(pods.shutdown_seconds)
    limits = {"cpu": str(spec.cpus_per_task)}
    if spec.memory is not None:
        limits["memory"] = spec.memory
    if pods.gpus:
        limits["nvidia.com/gpu"] = str(pods.gpus)
    ports = [] if pods.port is None else [{"name": "metrics", "containerPort": pods.port}]
    claims = {f"claim-{number}": folder for number, folder in enumerate(spec.folders)}
    mounts = {"shm": "/dev/shm", "tmp": _HOME, **claims}
    volumes = [
        {"name": "shm", "emptyDir": {"medium": "Memory"}},  # else it has 64 MB
        {"name": "tmp", "emptyDir": {}},
        *(
            {"name": name, "persistentVolumeClaim": {"claimName": spec.folders[folder]}}
            for name, folder in claims.items()
        ),
    ]
    return fill(
        "indexed-job.yaml.in",
        number=str(pods.number),
        suspend=as_yaml(pods.is_suspended),
        again=str(int(ExitCode.STOPPED)),
        labels=as_yaml(_labels(spec, pods)),
        grace_seconds=str(pods.grace_seconds),
        subdomain=as_yaml(pods.name),
        user=str(spec.user_id),
        image=as_yaml(spec.container),
        command=as_yaml(pods.command),
        environment=as_yaml(
            [{"name": name, "value": value} for name, value in environment.items()]
        ),
        ports=as_yaml(ports),
        limits=as_yaml(limits),
        mounts=as_yaml([{"name": name, "mountPath": folder} for name, folder in mounts.items()]),
        volumes=as_yaml(volumes),
    )


def _job(spec: KubernetesSpec, pods: Pods) -> str:
    content = textwrap.indent(_indexed_job(spec, pods), " " * 2)
    return fill("job.yaml.in", metadata=_metadata(spec, pods), job=content.rstrip())


def _train_job(spec: TrainPods, pods: Pods) -> str:
    return fill(
        "train-job.yaml.in",
        metadata=_metadata(spec, pods),
        name=as_yaml(pods.name),
        number=str(pods.number),
        job=textwrap.indent(_indexed_job(spec, pods), " " * 14).rstrip(),
    )


def _service(spec: KubernetesSpec, pods: Pods) -> str:
    metadata, selector = _metadata(spec, pods), as_yaml(_selector(pods))
    return fill("service.yaml.in", metadata=metadata, selector=selector, port=str(_PORT))


def _pod_monitor(spec: KubernetesSpec, pods: Pods, run: RunDirectory) -> str:
    folder = os.path.normpath(run.path)  # not of this host: no link in it can be followed
    name, path = map(as_yaml, _literal([folder.rpartition("/")[2], folder]))
    return fill(
        "pod-monitor.yaml.in",
        metadata=_metadata(spec, pods),
        selector=as_yaml(_selector(pods)),
        run=name,
        run_dir=path,
    )
