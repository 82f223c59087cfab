"""A job on several nodes that nothing starts at once: which node leaves how, and who goes on."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from launch.__main__ import main
from launch.meeting import Meeting, has_lost_nodes
from launch.torchrun import local_environment, torchrun_command
from pipeline.run.events import Event
from tests.integration.training import make_shards, rows, training, wait_for_step
from tests.launch.test_local import children_of, kill_tree, start
from tests.launch.test_outcome import begin, end, save
from tests.machine import DEADLINE_SECONDS, is_running, wait_until
from tests.pipeline.monitoring import free_port, wait_for


def node(
    rank: int, port: int, shards: Path, run: Path
) -> AbstractContextManager[subprocess.Popen[str]]:
    """One of two, with one rank; no process of it outlives the block."""
    spec = ("--nproc", 1, "--nodes", 2, "--node-rank", rank, "--rendezvous", f"127.0.0.1:{port}")
    return start(*spec, *training(shards, run, "--epochs", 1000))


def first_line(job: subprocess.Popen[str], text: str) -> str:
    assert job.stdout is not None
    return next(line for line in job.stdout if text in line)


@pytest.mark.slow
def test_a_node_whose_others_are_gone_can_go_on(tmp_path: Path) -> None:
    """It waits for node 0, trains with it, and loses it: what started it starts it again."""
    shards, run = make_shards(tmp_path / "shards"), tmp_path / "run"
    with node(1, port := free_port(), shards, run) as one:
        assert "waiting for node 0" in first_line(one, "node 0")
        with node(0, port, shards, run) as zero:
            wait_for_step(run, 3)
            assert rows(run, "run")[-1]["world_size"] == 2
            assert len(list((run / "logs").glob("local-*-node[01].log"))) == 2
            kill_tree(zero.pid)  # as when its host is gone
        one.communicate(timeout=DEADLINE_SECONDS)
    assert one.returncode == 75


@pytest.mark.slow
def test_a_node_does_not_wait_for_one_that_was_asked_to_leave(tmp_path: Path) -> None:
    """Whose torchrun says nothing: by itself torchrun waits for it for 300 seconds."""
    place, begun = f"127.0.0.1:{free_port()}", tmp_path / "begun"
    waits = f"import time; open({str(begun)!r}, 'w').close(); time.sleep(600)"
    with contextlib.ExitStack() as ended:
        nodes = []
        for rank, statement in enumerate(("pass", waits)):
            meeting = Meeting(place=place, num_nodes=2, node_rank=rank)
            meeting.wait(lambda: False)
            words = ("-n1", "-r1", statement)
            command = torchrun_command(1, 3, "timeit", words, *meeting.torchrun_options())
            environment = local_environment(is_alone=False)
            nodes.append(ended.enter_context(subprocess.Popen(command, env=environment)))
            ended.callback(kill_tree, nodes[-1].pid)
        zero, one = nodes
        wait_for(begun.exists, "the other rank")
        (rank_of_one,) = children_of(one.pid)
        one.terminate()
        assert one.wait(DEADLINE_SECONDS) == 128 + signal.SIGTERM
        assert zero.wait(150) == 0
        wait_until(lambda: not is_running(rank_of_one))


@pytest.mark.parametrize(
    ("expected", "events", "code"),
    [
        (True, [], 75),
        (False, [], 1),
        (True, [begin(4), end("failed", 5, "lost_rank")], 1),
        (True, [begin(4), save(5)], 1),
        (False, [begin(4), end("failed", 5)], 1),
        (False, [end("failed", 0)], 1),
        (False, [begin(4), end("failed", 5, "lost_rank")], 137),
        (False, [begin(4), save(5)], 139),
    ],
)
def test_only_a_node_that_lacked_another_one_can_go_on(
    expected: bool, events: list[Event], code: int
) -> None:
    assert has_lost_nodes(events, code) is expected


def test_a_node_waits_for_node_0_until_it_is_asked_to_leave(
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = f"localhost:{free_port()}"
    asked = iter([False, True, True])
    assert not Meeting(place=place, num_nodes=2, node_rank=1).wait(lambda: next(asked))
    assert capsys.readouterr().out.startswith(f"waiting for node 0 at {place}: ")
    assert Meeting(place=place, num_nodes=2, node_rank=0).wait(lambda: False)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--nodes", 2), "--nodes is 2, and --rendezvous is missing: give both for several"),
        (("--rendezvous", "a:1"), "--nodes is 1, and --rendezvous is a:1: give both"),
        (
            ("--nodes", 2, "--node-rank", 2, "--rendezvous", "a:1"),
            "--node-rank is 2; expected 0 to",
        ),
    ],
)
def test_options_of_nodes_that_contradict_each_other_are_refused(
    words: tuple[object, ...], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("cifar10", "--data.shards", "s", "--run-dir", tmp_path / "run")
    assert main(["local", *map(str, words), *map(str, command)]) == 1
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("place", ["node", "node:0", "node:65536"])
def test_a_place_has_a_host_and_a_port(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["local", "--rendezvous", place, "cifar10"])
    assert f"--rendezvous is '{place}'; expected HOST:PORT" in capsys.readouterr().err
