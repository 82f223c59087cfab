"""What is rendered for Kubernetes: objects that its own models know, and commands that work."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from kubeflow_trainer_api.models.trainer_v1alpha1_train_job import TrainerV1alpha1TrainJob
from kubeflow_trainer_api.models.trainer_v1alpha1_training_runtime import (
    TrainerV1alpha1TrainingRuntime,
)
from kubernetes.client.models.v1_job import V1Job
from kubernetes.client.models.v1_job_spec import V1JobSpec
from kubernetes.client.models.v1_service import V1Service

from data_prep.__main__ import parse as parse_sharding
from data_prep.shard_set.options import made
from launch import local
from launch.__main__ import _parser, main
from launch.templates import as_yaml
from pipeline.train.command import parse_command

IMAGE = ("--container", "registry.example.org/alexnet:0.1.0")
CLAIMS = ("--claim", "shards:/data", "--claim", "runs:/runs")
SPEC = (*IMAGE, *CLAIMS)
TRAINING = ("alexnet_fast", "--data.shards", "/data/imagenet", "--run-dir", "/runs/first")

MODELS = {
    "Service": V1Service,
    "Job": V1Job,
    "TrainJob": TrainerV1alpha1TrainJob,
    "TrainingRuntime": TrainerV1alpha1TrainingRuntime,
}


def kubernetes(*words: object) -> int:
    return main(["kubernetes", *map(str, words)])


def render(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    """The objects by kind, or of one kind by name."""
    assert kubernetes(*words) == 0
    documents = list(yaml.safe_load_all(capsys.readouterr().out))
    kinds = {document["kind"]: document for document in documents}
    if len(kinds) == len(documents):
        return kinds
    return {document["metadata"]["name"]: document for document in documents}


def holds(found: object, wanted: object) -> bool:
    """Whether a model has kept all that it was given; it adds what was left out."""
    if isinstance(wanted, Mapping):
        return isinstance(found, Mapping) and all(
            key in found and holds(found[key], wanted[key]) for key in wanted
        )
    if isinstance(wanted, list):
        assert isinstance(found, list)
        return len(found) == len(wanted) and all(map(holds, found, wanted))
    return found == wanted


def container_of(job: Mapping[str, Any]) -> dict[str, Any]:
    (container,) = job["template"]["spec"]["containers"]
    return dict(container)


def expanded(words: list[str], index: int) -> list[str]:
    """As the kubelet does: $(NAME) is the variable if there is one, and $$ is $."""
    known = {"$(JOB_COMPLETION_INDEX)": str(index), "$$": "$"}
    return [re.sub(r"\$\$|\$\([^)]*\)", lambda m: known.get(m[0], m[0]), word) for word in words]


def as_launched(words: list[str], index: int = 0) -> local.Options:
    """What `launch local` takes a container's command for."""
    python, dash_m, module, *rest = expanded(words, index)
    assert (python, dash_m, module) == ("python3", "-m", "launch")
    return made(local.Options, vars(_parser().parse_args(rest)))


@pytest.mark.parametrize("kind", ["job", "trainjob"])
@pytest.mark.parametrize("nodes", [1, 3])
@pytest.mark.parametrize("gpus", [("--gpus-per-node", 0, "--ranks-per-node", 2), ()])
@pytest.mark.parametrize("more", [(), ("--memory", "64Gi", "--label", "a.b/c=d", "--namespace=n")])
def test_the_models_of_kubernetes_and_the_trainer_know_all_that_is_rendered(
    kind: str,
    nodes: int,
    gpus: tuple[object, ...],
    more: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    spec = ("--kind", kind, "--nodes", nodes, *gpus, *more, *SPEC)
    objects = render(capsys, "train", *spec, *TRAINING)
    for name, wanted in objects.items():
        if name != "PodMonitor":  # has no package: see its golden file
            model = MODELS[name].from_dict(wanted)
            back = model.to_dict(serialize=True) if name in ("Service", "Job") else model.to_dict()
            assert holds(back, wanted)
    if kind == "trainjob":
        (job,) = objects["TrainingRuntime"]["spec"]["template"]["spec"]["replicatedJobs"]
        V1JobSpec.from_dict(job["template"]["spec"])  # refuses names that it does not know
    assert ("Service" in objects) is (kind == "job" and nodes > 1)
    spaces = {each["metadata"].get("namespace") for each in objects.values()}
    assert spaces == {"n" if more else None}


def test_the_objects_are_those_of_the_golden_files(capsys: pytest.CaptureFixture[str]) -> None:
    """A change of them is seen in review: nothing here asks a cluster."""
    for kind in ("job", "trainjob"):
        words = ("--kind", kind, "--nodes", 2, "--memory", "64Gi", "--label", "team=vision", *SPEC)
        assert kubernetes("train", *words, *TRAINING) == 0
        golden = Path(__file__).with_name(f"{kind}.golden.yaml")
        assert golden.read_text() == capsys.readouterr().out


@pytest.mark.parametrize("kind", ["job", "trainjob"])
def test_every_pod_is_a_node_of_one_launch(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    spec = ("--kind", kind, "--nodes", 2, "--max-restarts", 5, "--job-name", "a", *SPEC)
    objects = render(capsys, "train", *spec, *TRAINING)
    if kind == "job":
        job = objects["Job"]["spec"]
        words, host = container_of(job)["command"], "a-0.a"
        assert job["template"]["spec"]["subdomain"] == objects["Service"]["metadata"]["name"]
        labels = job["template"]["metadata"]["labels"]
        assert objects["Service"]["spec"]["selector"].items() <= labels.items()
    else:
        (job,) = objects["TrainingRuntime"]["spec"]["template"]["spec"]["replicatedJobs"]
        words, host = container_of(job["template"]["spec"])["command"], "a-node-0-0.a"
    for index in (0, 1):
        options = as_launched(words, index)
        meeting = options.meeting()
        assert meeting is not None
        assert (meeting.place, meeting.num_nodes, meeting.node_rank) == (f"{host}:29500", 2, index)
        assert (options.nproc, options.max_restarts) == (8, 5)
        assert options.command[:5] == TRAINING


def test_a_pod_has_the_time_to_save(capsys: pytest.CaptureFixture[str]) -> None:
    """Its ranks are killed by torchrun, which says so, and not with it."""
    job = render(capsys, "train", "--signal-lead", 120, *SPEC, *TRAINING)["Job"]["spec"]
    pod = job["template"]["spec"]
    environment = {each["name"]: each["value"] for each in container_of(job)["env"]}
    assert pod["terminationGracePeriodSeconds"] == 120
    assert environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "90"


@pytest.mark.parametrize(
    ("code", "conditions", "action"),
    [
        (75, [], "Ignore"),
        (1, [], None),
        (137, [], None),
        (137, ["DisruptionTarget"], "Ignore"),
        (143, ["DisruptionTarget"], "Ignore"),
    ],
)
def test_what_follows_an_end_of_a_pod(
    code: int, conditions: list[str], action: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """None: the failure counts, and none is allowed."""
    job = render(capsys, "train", *SPEC, *TRAINING)["Job"]["spec"]
    assert job["backoffLimit"] == 0
    assert job["template"]["spec"]["restartPolicy"] == "Never", "else there is no such policy"

    def holds_for(rule: Mapping[str, Any]) -> bool:
        if "onExitCodes" in rule:
            assert rule["onExitCodes"]["operator"] == "In"
            return code in rule["onExitCodes"]["values"]
        return any(pattern["type"] in conditions for pattern in rule["onPodConditions"])

    rules = job["podFailurePolicy"]["rules"]
    assert next((rule["action"] for rule in rules if holds_for(rule)), None) == action


def test_prometheus_reaches_the_exporter_that_the_monitor_names(
    capsys: pytest.CaptureFixture[str],
) -> None:
    objects = render(capsys, "train", *SPEC, *TRAINING, "--metrics.exporter_port", 9800)
    (endpoint,) = objects["PodMonitor"]["spec"]["podMetricsEndpoints"]
    pods = objects["Job"]["spec"]["template"]
    selector = objects["PodMonitor"]["spec"]["selector"]["matchLabels"]
    assert selector.items() <= pods["metadata"]["labels"].items()
    container = container_of(objects["Job"]["spec"])
    assert {"name": endpoint["port"], "containerPort": 9800} in container["ports"]
    command = parse_command(as_launched(container["command"]).command)
    assert command.config.metrics.exporter_address == "0.0.0.0"
    (host,) = (row for row in endpoint["relabelings"] if row["targetLabel"] == "node")
    for pod in ("alexnet-0-x7bqz", "alexnet-node-0-12-abcde"):
        match = re.fullmatch(host["regex"], pod)
        assert match is not None
        assert match[1] == pod[:-6]
    for without in (("--metrics.exporter", "false"), ("--metrics.enabled", "false")):
        assert set(render(capsys, "train", *SPEC, *TRAINING, *without)) == {"Job"}
    address = ("--metrics.exporter_address", "10.0.0.7")
    objects = render(capsys, "train", "--no-pod-monitor", *SPEC, *TRAINING, *address)
    assert set(objects) == {"Job"}
    words = as_launched(container_of(objects["Job"]["spec"])["command"]).command
    assert parse_command(words).config.metrics.exporter_address == "10.0.0.7"


def test_a_conversion_is_an_indexed_job_and_one_that_waits_to_merge(
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = ("synthetic", "--output", "/data/new", "--num-train", 100)
    objects = render(capsys, "prepare", "--array-size", 4, "--cpus-per-task", 3, *SPEC, *source)
    converting, merging = objects["alexnet-prepare"], objects["alexnet-prepare-merge"]
    for job in (converting, merging):
        assert holds(V1Job.from_dict(job).to_dict(serialize=True), job)
    assert converting["spec"]["completions"] == converting["spec"]["parallelism"] == 4
    words = expanded(container_of(converting["spec"])["command"], 2)
    assert words[:3] == ["python3", "-m", "data_prep"]
    options = parse_sharding(words[3:])
    assert (options.num_tasks, options.task, options.workers) == (4, 2, 3)
    assert merging["spec"]["suspend"] is True
    assert container_of(merging["spec"])["command"][2:] == ["data_prep", "merge", "/data/new"]
    claims = [volume.get("persistentVolumeClaim") for volume in pod_of(merging)["volumes"]]
    assert {"claimName": "shards"} in claims


def pod_of(job: Mapping[str, Any]) -> Mapping[str, Any]:
    pod: Mapping[str, Any] = job["spec"]["template"]["spec"]
    return pod


def test_containers_are_those_that_a_restricted_namespace_admits(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The standard 'restricted' of Kubernetes; see its page on pod security."""
    pod = pod_of(render(capsys, "train", *SPEC, "--user-id", 7, *TRAINING)["Job"])
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"] == 7
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    own = pod["containers"][0]["securityContext"]
    assert own == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert {"name": "shm", "emptyDir": {"medium": "Memory"}} in pod["volumes"]


VALUES = st.recursive(
    st.text(st.characters(exclude_categories=["Cs"]))
    | st.integers()
    | st.booleans()
    | st.none()
    | st.sampled_from(["no", "Null", "1e3", "0x1f", "~", "a: b", "- a", "# a", "a #b", "|", "&a"]),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text(max_size=30).filter(str.isascii), inner)
    ),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(VALUES)
def test_yaml_gives_back_what_was_written(value: object) -> None:
    assert yaml.safe_load(f"value: {as_yaml(value)}") == {"value": value}


HARD = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0/"), min_size=1)


@settings(max_examples=40, deadline=None)
@given(HARD.filter(lambda name: name not in (".", "..")))
def test_no_name_becomes_anything_else(name: str) -> None:
    """Not by quotes, newlines or `$(…)`, in YAML or in what Kubernetes replaces."""
    run = f"/runs/{name}"
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        output = Path(folder) / "job.yaml"
        words = (*TRAINING[:3], "--run-dir", run)
        assert kubernetes("train", *SPEC, "--to", output, *words) == 0
        job, monitor = yaml.safe_load_all(output.read_text())
    command = as_launched(container_of(job["spec"])["command"]).command
    assert command[command.index("--run-dir") + 1] == run
    relabelings = monitor["spec"]["podMetricsEndpoints"][0]["relabelings"]
    labels = {row["targetLabel"]: row.get("replacement") for row in relabelings}
    assert labels["run"].replace("$$", "$") == name


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((*CLAIMS, *TRAINING), "--container is missing: give the image that has the project"),
        (("--container", "a.sif", *TRAINING), "--container is 'a.sif'; expected an image of a reg"),
        (("--container", "a b", *TRAINING), "--container is 'a b'; expected one word"),
        ((*SPEC, "--job-name", "A_b", *TRAINING), "--job-name is 'A_b'; expected up to 40 small"),
        ((*SPEC, "--job-name", "a" * 41, *TRAINING), "expected up to 40 small letters"),
        ((*SPEC, "--label", "a", *TRAINING), "--label is 'a'; expected KEY=VALUE"),
        ((*SPEC, "--label", "a=b c", *TRAINING), "--label is 'a=b c'; expected KEY=VALUE"),
        ((*SPEC, "--label", "app.kubernetes.io/name=b", *TRAINING), "that does not begin with app"),
        (
            (*IMAGE, "--claim", "data", *TRAINING),
            "--claim is 'data'; expected a claim and a folder",
        ),
        ((*IMAGE, "--claim", "d:/a/../b", *TRAINING), "'d:/a/../b'; expected a claim"),
        ((*IMAGE, "--claim", "d:/dev/shm", *TRAINING), "expected a claim and a folder of its own"),
        ((*SPEC, "--claim", "b:/data", *TRAINING), "--claim gives two claims for one folder"),
        ((*IMAGE, *TRAINING), "--run-dir is /runs/first, where the container has no claim: give a"),
        ((*SPEC, *TRAINING[:3], "--run-dir", "r"), "--run-dir is r, where the container has no"),
        ((*SPEC, *TRAINING[:3], "--run-dir=/runs/../x"), "is /runs/../x, where the container has"),
        ((*SPEC, *TRAINING, "--fork-from", "/old"), "--fork-from is /old, where the container"),
        ((*SPEC, *TRAINING, "--init", "/old"), "--init is /old, where the container has no claim"),
        ((*SPEC, *TRAINING, "--data.shards", "/x"), "given twice"),
        ((*SPEC, "--gpus-per-node", 0, *TRAINING), "--ranks-per-node is missing"),
        ((*SPEC, "--signal-lead", 59, *TRAINING), "--signal-lead is 59; expected at least 60 sec"),
        ((*SPEC, *TRAINING, "--nodes=2"), "--nodes is an option of the launcher, and comes before"),
        ((*SPEC, *TRAINING, "--epochs", "x"), "--epochs"),
        ((*SPEC, *TRAINING, "--metrics.exporter_address", "::1"), "which no other pod reaches"),
        ((*SPEC, *TRAINING, "--metrics.exporter_port", 0), "is 0, any free port: leave that out"),
        ((*SPEC, "--to", "/no/such/x", *TRAINING), "/no/such is not a directory"),
        ((*SPEC, "--to", __file__, *TRAINING), "was not written by this command: move it"),
        (
            (*SPEC, *TRAINING[:3], "--run-dir", "/runs/\udcff"),
            "holds bytes that are no UTF-8: rename what",
        ),
    ],
)
def test_what_cannot_work_is_refused(
    words: tuple[object, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with contextlib.suppress(SystemExit):  # of the parser
        assert kubernetes("train", *words) == 1
    out, error = capsys.readouterr()
    assert out == ""
    assert "error: " in error
    assert sentence in error


def test_a_conversion_that_cannot_work_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert kubernetes("prepare", *SPEC, "synthetic", "--output", "/data/s", "--task", "0") == 1
    assert "--task is for the script to give" in capsys.readouterr().err
    assert kubernetes("prepare", *SPEC, "synthetic", "--output", "s") == 1
    assert "--output is s, where the container has no claim" in capsys.readouterr().err
