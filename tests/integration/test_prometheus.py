"""A real Prometheus, started by our command, scrapes two real ranks and answers."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Gauge, start_http_server

from data_prep.shard_set.files import write_atomically
from launch.__main__ import main
from launch.monitoring.dashboards import render_dashboards
from launch.prometheus import server_command
from pipeline.metrics.gpu import GpuCollector
from pipeline.metrics.publisher import Publisher
from tests.integration.training import GLOBAL_BATCH, make_shards, ranks_of, rows, torchrun, training
from tests.launch.monitoring.questions import answered, queries_of
from tests.machine import DEADLINE_SECONDS
from tests.pipeline.metrics.test_gpu import UUID, nvml
from tests.pipeline.monitoring import (
    REPOSITORY,
    Api,
    eventually,
    exporter_pid,
    exporter_process,
    finish,
    free_port,
    make_certificate,
    process,
    rank_process,
    require_tool,
    target_file,
    wait_for,
)
from tests.pipeline.rank_process import DATA_WAIT_RATIO, EVAL_TOP1, LOSS, SAMPLES_PER_SECOND, TOP1

IMAGES_PER_SECOND = "sum by (run) (rate(alexnet_train_samples_total[8s]))"
DATA_WAIT = (
    'sum by (run) (rate(alexnet_step_seconds_total{phase="data_wait"}[8s]))'
    " / sum by (run) (rate(alexnet_step_seconds_total[8s]))"
)


def documented(question: str) -> str:
    """The PromQL that docs/metrics.md has for a question."""
    return dict(questions())[question]


def questions() -> list[tuple[str, str]]:
    """Those of docs/metrics.md, and the answers in PromQL."""
    page = (REPOSITORY / "docs" / "metrics.md").read_text()
    _, _, table = page.partition("| question | PromQL |\n| --- | --- |\n")
    return re.findall(r"^\| (.+?) \| `(.+)` \|$", table.partition("\n\n")[0], re.MULTILINE)


def assert_that_false_targets_are_down(api: Api, run: Path) -> None:
    """Those at the run's address that claim another run or node, or are of another exporter."""
    (entry,) = json.loads(target_file(run).read_text())
    names = ("run", "node", "__param_exporter")
    for name in names:
        false = entry | {"labels": entry["labels"] | {"run_dir": name, name: "x"}}
        write_atomically(target_file(run.parent / name), json.dumps([false]).encode())
    wait_for(lambda: len(api.query('up{run_dir!~"/.*"} == 0')) == 3, "that they are down")
    assert api.query('alexnet_rank_up{run_dir!~"/.*"}') == []
    for name in names:
        target_file(run.parent / name).unlink()


def per_step_second(counter: str) -> str:
    """How much a counter grew for each second of steps: by one scrape, so no clock is compared."""
    grown, seconds = (
        f"sum by (run) (rate({name}[8s]))" for name in (counter, "alexnet_step_seconds_total")
    )
    return f"{grown} / {seconds}"


def are_those_of_two_ranks(api: Api) -> bool:
    """A scrape that comes too late has no values: all are asked for together."""
    speed = api.value(per_step_second("alexnet_train_samples_total"))
    targets = api.query('up{job="alexnet_train"}')
    return (
        speed == pytest.approx(SAMPLES_PER_SECOND, rel=0.02)
        and api.value(DATA_WAIT) == pytest.approx(DATA_WAIT_RATIO, rel=0.02)
        and api.value("alexnet_train_loss") == LOSS
        and api.value("alexnet_train_accuracy_ratio") == TOP1
        and api.value("alexnet_global_step") > 0
        and {labels["rank"] for labels, _ in api.query("alexnet_rank_up == 1")} == {"0", "1"}
        and [(target["run"], up) for target, up in targets] == [("run", 1)]
    )


def are_documented_answers(api: Api) -> bool:
    seconds_per_step = " / ".join(
        f'sum by (run) (rate({name}{{rank="0"}}[1m]))'
        for name in ("alexnet_step_seconds_total", "alexnet_train_steps_total")
    )
    mean_step = documented("mean step")
    waits = api.query(documented("share of the time spent waiting for data"))
    loss, top1, evaluated = documented("loss, top-1").split("`, `")
    return (
        api.value(documented("images per second")) > 0
        and [labels["rank"] for labels, _ in waits] == ["0", "1"]
        and [share for _, share in waits] == pytest.approx([DATA_WAIT_RATIO] * 2, rel=0.05)
        and (api.value(loss), api.value(top1), api.value(evaluated)) == (LOSS, TOP1, EVAL_TOP1)
        and api.value(f"{mean_step} / on (run) ({seconds_per_step})") == pytest.approx(1, rel=0.1)
    )


def test_prometheus_answers_for_two_ranks(tmp_path: Path) -> None:
    require_tool("prometheus")
    run = tmp_path / "run"
    run.mkdir()
    port = free_port()
    api = Api(port)
    server = ["launch", "prometheus", "--run-root", tmp_path, "--start", "--port", port]
    with (
        process(*server, "--scrape-interval", "1s"),
        exporter_process(run, "--port", 0),
        rank_process(run, 0) as leader,
        rank_process(run, 1) as victim,
    ):
        wait_for(lambda: are_those_of_two_ranks(api), "what two ranks publish")
        wait_for(lambda: are_documented_answers(api), "the answers of docs/metrics.md")
        assert_that_false_targets_are_down(api, run)

        killed, stalled = documented("killed ranks"), documented("stalled runs")
        standing = documented("how runs stand, or ended")
        is_running = [{"run": "run", "outcome": "running"}]
        wait_for(lambda: api.labels(standing) == is_running, "that the run is at work")
        assert api.query(killed) == api.query(stalled) == []
        stalled_soon = stalled.replace("600", "1")
        assert stalled_soon != stalled

        victim.kill()
        wait_for(lambda: api.labels(killed) == [{"run": "run", "rank": "1"}], "the death of rank 1")
        wait_for(  # of another scrape
            lambda: [row[0]["rank"] for row in api.query("alexnet_rank_up == 1")] == ["0"],
            "that the exporter sees it too",
        )

        leader.send_signal(signal.SIGSTOP)
        wait_for(lambda: api.labels(stalled_soon) == [{"run": "run"}], "that the run stands still")
        leader.send_signal(signal.SIGCONT)
        finish(leader)
        wait_for(
            lambda: api.labels(standing) == [{"run": "run", "outcome": "completed"}],
            "the end of the run",
        )
        wait_for(lambda: not api.query(stalled_soon), "that a run that is done is not stalled")


@contextlib.contextmanager
def dcgm_exporter() -> Iterator[str]:
    """A stand-in for that of NVIDIA, with its names; yields its address."""
    registry = CollectorRegistry()
    labels = ("gpu", "UUID", "device", "modelName", "Hostname")
    gauge = Gauge("DCGM_FI_DEV_GPU_UTIL", "GPU utilization (in %).", labels, registry=registry)
    gauge.labels("0", "GPU-of-another-job", "nvidia0", "NVIDIA H200", "node17").set(3)
    gauge.labels("1", UUID, "nvidia1", "NVIDIA H200", "node17").set(87)
    server, thread = start_http_server(0, "127.0.0.1", registry)
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_the_series_of_dcgm_are_joined_by_uuid(tmp_path: Path) -> None:
    """Those of a GPU that two ranks of one run share, and that another run had before."""
    prometheus, library = require_tool("prometheus"), nvml(tmp_path)
    root, port = tmp_path / "runs", free_port()
    for name, ranks in (("run", (0, 1)), ("before", (0,))):
        for rank in ranks:
            registry = CollectorRegistry()
            registry.register(GpuCollector(UUID, rank=rank, local_rank=rank, library=library))
            where = root / name / "metrics"
            Publisher(where, registry, rank=rank, local_rank=rank, interval_seconds=2).close()
    assert main(["prometheus", "--run-root", str(root), "--scrape-interval", "1s"]) == 0
    config = root / "own.yml"
    command = server_command(config, tmp_path / "data", port)
    api, question = Api(port), documented("what DCGM says of each rank's GPU")
    with (
        dcgm_exporter() as address,
        exporter_process(root / "run", "--port", 0),
        exporter_process(root / "before", "--port", 0),
    ):
        job = f'  - job_name: dcgm\n    static_configs: [{{targets: ["{address}"]}}]\n'
        config.write_text((root / "prometheus.yml").read_text() + job)
        with subprocess.Popen([prometheus, *command[1:]]) as server:
            try:
                found: list[tuple[dict[str, str], float]] = []

                def are_joined() -> bool:
                    found[:] = api.query(question)
                    return len(found) == 3

                wait_for(are_joined, "the joined series")
            finally:
                server.terminate()
    assert sorted((row["run"], row["rank"], value) for row, value in found) == [
        ("before", "0", 87),
        ("run", "0", 87),
        ("run", "1", 87),
    ]
    assert {row["gpu_index"] for row, _ in found} == {"1"}


def test_prometheus_shows_its_certificate_as_documented(tmp_path: Path) -> None:
    prometheus = require_tool("prometheus")
    run, port = tmp_path / "run", free_port()
    run.mkdir()
    certificate, key = make_certificate(tmp_path)
    page = (REPOSITORY / "docs" / "metrics.md").read_text()
    stanza = page.split("```yaml\n")[1].split("```")[0]
    stanza = re.sub(r"/etc/\S+\.pem", str(certificate), re.sub(r"/etc/\S+\.key", str(key), stanza))
    assert main(["prometheus", "--run-root", str(tmp_path), "--scrape-interval", "1s"]) == 0
    config = tmp_path / "own.yml"
    own = (tmp_path / "prometheus.yml").read_text()
    config.write_text(own.replace("    relabel_configs", f"{stanza}    relabel_configs"))
    options = ("--certfile", certificate, "--keyfile", key, "--client-cafile", certificate)
    command = server_command(config, tmp_path / "data", port)
    with (
        exporter_process(run, "--port", 0, *options),
        rank_process(run, 0),
        subprocess.Popen([prometheus, *command[1:]]) as server,
    ):
        try:
            wait_for(lambda: Api(port).value("alexnet_rank_up") == 1, "a scrape over TLS")
        finally:
            server.terminate()


def assert_that_values_are_those_of(api: Api, run: Path) -> None:
    """What Prometheus shows of a run that is being trained by two ranks."""
    assert api.value(IMAGES_PER_SECOND) > 0
    per_step = "alexnet_train_samples_total / ignoring() alexnet_train_steps_total"
    assert [value for _, value in api.query(per_step)] == [GLOBAL_BATCH / 2] * 2
    losses = [row["loss"] for row in rows(run, "train")]
    assert min(losses) <= api.value("alexnet_train_loss") <= max(losses)
    assert 0 <= api.value("alexnet_train_accuracy_ratio") <= 1
    assert 0 < api.value(DATA_WAIT) < 1
    assert api.value("alexnet_world_size_ranks") == 2
    assert {labels["rank"] for labels, _ in api.query("alexnet_rank_up == 1")} == {"0", "1"}
    assert api.value("alexnet_train_grad_norm") > 0, "without clipping, too"
    ((info, _),) = api.query("alexnet_run_info")
    assert (info["recipe"], info["columns"]) == ("cifar10", "fused")
    assert info["dataset"] == "generated shapes"
    assert len(info["git_revision"]) >= 7


def assert_that_dashboards_are_answered(api: Api) -> None:
    """By a run on CPUs in fp32 that nothing is wrong with; the rest is put to a stand-in."""
    dashboards = {name: json.loads(text) for name, text in render_dashboards().items()}
    open_questions = set(queries_of(dashboards))
    needs_more = ("alexnet_gpu_", "alexnet_grad_scale", "alexnet_convert_", "ALERTS", "resumes")
    expected = {each for each in open_questions if any(word in each for word in needs_more)}
    assert len(open_questions) - len(expected) > 45

    def are_answered() -> None:
        open_questions.difference_update(answered(api, sorted(open_questions)))
        assert open_questions <= expected

    eventually(are_answered)


def test_prometheus_watches_a_training_job_from_its_first_step_to_its_end(tmp_path: Path) -> None:
    require_tool("prometheus")
    shards, run, logs = make_shards(tmp_path / "shards"), tmp_path / "run", tmp_path / "logs"
    port = free_port()
    api = Api(port)
    server = ["launch", "prometheus", "--run-root", tmp_path, "--start", "--port", port]
    options = ["--epochs", 20_000, "--checkpoint.every_epochs", 20, "--log_every_steps", 10]
    options += ["--evaluation.every_epochs", 20, "--metrics.exporter", "true"]
    options += ["--metrics.exporter_port", 0, "--metrics.publish_seconds", 0.2]
    standing, killed, ended_badly = map(
        documented, ("how runs stand, or ended", "killed ranks", "runs that failed or were killed")
    )

    def has_failed() -> bool:
        """Rank 0 has said why it left, and rank 1 has said nothing."""
        return api.labels(ended_badly) == api.labels(standing) == [
            {"run": "run", "outcome": "failed"}
        ] and api.labels(killed) == [{"run": "run", "rank": "1"}]

    with process(*server, "--scrape-interval", "1s"):
        with torchrun(2, "pipeline.train", training(shards, run, *options), logs) as job:
            wait_for(lambda: api.value(IMAGES_PER_SECOND) > 0, "images a second")
            wait_for(lambda: api.value('alexnet_eval_accuracy_ratio{k="1"}') >= 0, "top-1")
            eventually(lambda: assert_that_values_are_those_of(api, run))
            assert_that_dashboards_are_answered(api)
            is_running = [{"run": "run", "outcome": "running"}]
            wait_for(lambda: api.labels(standing) == is_running, "that the run is at work")
            assert api.query(killed) == api.query(ended_badly) == []

            os.kill(ranks_of(job)[1], signal.SIGKILL)
            job.communicate(timeout=DEADLINE_SECONDS)
        wait_for(has_failed, "what became of the run")
        failed = 'max by (rank) (alexnet_rank_outcome{outcome="failed"}) == 1'
        wait_for(lambda: api.labels(failed) == [{"rank": "0"}], "which rank has failed")
        os.kill(exporter_pid(run), signal.SIGKILL)
        wait_for(lambda: api.value('up{job="alexnet_train"}') == 0, "that the exporter is gone")
        wait_for(lambda: not api.query("alexnet_rank_up"), "that its values are gone")
        wait_for(has_failed, "that the run directory tells it")

        with torchrun(2, "pipeline.train", training(shards, run, *options), logs) as job:
            wait_for(lambda: api.labels(standing) == is_running, "that it runs again")
            wait_for(lambda: bool(api.query("alexnet_rank_up == 1")), "that its ranks are up")
            wait_for(lambda: not api.query(killed), "that all ranks are there")
            pids = (job.pid, *ranks_of(job).values(), exporter_pid(run))
            for number in (signal.SIGSTOP, signal.SIGKILL):  # none lives to tell of another's end
                for pid in pids:
                    os.kill(pid, number)
        wait_for(
            lambda: (
                api.labels(ended_badly)
                == api.labels(standing)
                == [{"run": "run", "outcome": "killed"}]
                and {row["rank"] for row in api.labels(killed)} == {"0", "1"}
            ),
            "that all were killed at once",
        )


def test_every_documented_question_is_put_to_a_prometheus_here() -> None:
    """Those of the README are among them."""
    asked = Path(__file__).read_text()
    assert len(questions()) == 9
    assert [name for name, _ in questions() if f'"{name}"' not in asked] == []
    readme = (REPOSITORY / "README.md").read_text()
    block = readme.partition("\n    # images a second")[2].partition("\n\n")[0]
    answers = "`, `".join(answer for _, answer in questions()).split("`, `")
    assert len(block.splitlines()) == 5
    assert {line.strip() for line in block.splitlines()[1:]} < set(answers)
