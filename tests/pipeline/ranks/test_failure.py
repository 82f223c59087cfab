"""One sentence, one exit code."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn
from unittest import mock

import pytest
import torch
from torch.distributed import DistBackendError

from pipeline.config.schema import DistributedConfig
from pipeline.model.columns import ExchangeError
from pipeline.ranks.connect import connect
from pipeline.ranks.failure import (
    FirstFailure,
    LostRank,
    RankFailure,
    exit_code_of,
    sentence_of,
    waiting_for_ranks,
)
from pipeline.ranks.launcher import LaunchEnvironment
from pipeline.ranks.world import World
from pipeline.run.ending import STOP_SIGNALS, ExitCode
from pipeline.run.lock import JobStart
from tests.machine import DEADLINE_SECONDS
from tests.pipeline.monitoring import free_port, wait_for
from tests.pipeline.rank_jobs import call_in_processes, call_on_ranks, rank_environment
from tests.pipeline.worlds import SINGLE


def raiser(error: BaseException) -> Callable[[], NoReturn]:
    def body() -> NoReturn:
        raise error

    return body


def missing_file() -> OSError:
    try:
        Path("/no/such/file").read_bytes()
    except OSError as error:
        return error
    raise AssertionError


GLOO = (
    "[/__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error "
    "[127.0.0.1]:36027: Connection reset by peer. This is typically caused by a remote worker "
    "hanging or bugs in the application. Check the logs of the remote worker before reporting an "
    "error. GLHF! 🏖️"
)
"""As torch 2.13 has it."""


def test_a_failure_can_be_handed_to_another_process() -> None:
    failure = pickle.loads(pickle.dumps(RankFailure("rank 1: b", is_reported_here=False)))
    assert (str(failure), failure.is_reported_here) == ("rank 1: b", False)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ValueError("epochs is 0; expected above 0"), "epochs is 0; expected above 0"),
        (missing_file(), "/no/such/file: No such file or directory"),
        (OSError("the checkpoint could not be saved"), "the checkpoint could not be saved"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (RankFailure("rank 1 on a: b", is_reported_here=True), "rank 1 on a: b"),
        (RuntimeError("out of memory"), "RuntimeError: out of memory"),
        (KeyError("model"), "KeyError: 'model'"),
        (AssertionError(), "AssertionError: "),
        (TypeError("a stack\nbelow"), "TypeError: a stack"),
        (
            LostRank("Application timeout caused pair closure"),
            "lost another rank: it was killed, hangs or its host is gone "
            "(Application timeout caused pair closure)",
        ),
        (
            DistBackendError("the watchdog"),
            "lost another rank: it was killed, hangs or its host is gone (the watchdog)",
        ),
        (
            ExchangeError(GLOO + "\nmore"),
            "lost another rank: it was killed, hangs or its host is gone "
            "(Read error [127.0.0.1]:36027: Connection reset by peer)",
        ),
    ],
)
def test_sentences(error: Exception, sentence: str) -> None:
    assert sentence_of(error) == sentence


@pytest.mark.parametrize(
    ("error", "has_traceback"),
    [
        (ValueError("a sentence"), False),
        (missing_file(), False),
        (LostRank(GLOO), False),
        (RuntimeError("nobody foresaw this"), True),
        (AssertionError("nor this"), True),
    ],
)
def test_only_what_nobody_foresaw_has_a_traceback(
    error: Exception, has_traceback: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code_of(raiser(error)) == ExitCode.FAILED
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.endswith(f"error: {sentence_of(error)}\n")
    assert captured.err.count("error: ") == 1
    assert captured.err.startswith("Traceback") is has_traceback


def test_a_failure_is_reported_where_it_should_be(capsys: pytest.CaptureFixture[str]) -> None:
    for is_reported, expected in ((True, "error: rank 1 on a: b\n"), (False, "")):
        failure = RankFailure("rank 1 on a: b", is_reported_here=is_reported)
        assert exit_code_of(raiser(failure)) == ExitCode.FAILED
        assert capsys.readouterr().err == expected


def test_the_exit_code_of_what_ends_well_is_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(lambda: 75) == 75
    assert exit_code_of(raiser(KeyboardInterrupt())) == int(ExitCode.INTERRUPTED) == 130
    assert capsys.readouterr().err == ""


def fail_on(world: World, failing: dict[int, str]) -> tuple[str, bool] | None:
    try:
        with world.fail_together():
            if world.rank in failing:
                raise ValueError(failing[world.rank])
    except RankFailure as failure:
        return str(failure), failure.is_reported_here
    return None


@pytest.mark.slow
def test_ranks_fail_together() -> None:
    assert call_on_ranks(3, fail_on, {}) == [None] * 3
    alike = call_on_ranks(3, fail_on, {0: "no disk", 1: "no disk", 2: "no disk"})
    assert alike == [("no disk", True), ("no disk", False), ("no disk", False)]
    alone = call_on_ranks(3, fail_on, {1: "no disk", 2: "no memory"})
    assert [reported for _, reported in alone] == [True, True, False]
    (sentence,) = {text for text, _ in alone}
    assert sentence.startswith("rank 1 on ")
    assert sentence.endswith(": no disk")


def report_in_turn(world: World) -> tuple[str, bool]:
    """Rank 1 fails first, the others after it, because of it."""
    error = ValueError("a damaged image") if world.rank == 1 else LostRank(GLOO)
    if world.rank != 1:
        world.all_gather_object(None)
    failure = world.report_failure(error)
    if world.rank == 1:
        world.all_gather_object(None)
    return str(failure), failure.is_reported_here


def test_all_ranks_name_the_first_to_fail() -> None:
    outcomes = call_on_ranks(3, report_in_turn)
    assert [reported for _, reported in outcomes] == [True, True, False]
    (sentence,) = {text for text, _ in outcomes}
    assert sentence.startswith("rank 1 on ")
    assert sentence.endswith(": a damaged image")


def publish_failures(world: World) -> list[str]:
    """A watchdog's verdict first, then what each rank makes of it."""
    assert world.store is not None
    assert world.watchdog_store is not None
    assert FirstFailure.find(world.watchdog_store) is None
    world.all_gather_object(None)
    if world.rank == 1:
        FirstFailure("rank 2 on a hangs").publish(world.watchdog_store)
    world.all_gather_object(None)
    found = FirstFailure.find(world.watchdog_store)
    return [
        str(found),
        str(FirstFailure("late", 0, "b").publish(world.watchdog_store)),
        *reported(world),
    ]


def reported(world: World) -> Iterator[str]:
    failure = world.report_failure(LostRank(GLOO))
    yield from (str(failure), str(failure.is_reported_here))


def test_a_verdict_is_a_first_failure_too() -> None:
    words = ["rank 2 on a hangs"] * 3
    assert call_on_ranks(2, publish_failures) == [[*words, "True"], [*words, "False"]]


def test_ranks_meet_whatever_their_torchruns_have_counted() -> None:
    """torchrun counts failures of its own ranks, and no restart because of another host's."""
    environments = [{"TORCHELASTIC_RESTART_COUNT": count} for count in ("1", "0")]
    assert call_on_ranks(2, ranks_of, environments=environments) == [[0, 1]] * 2


def ranks_of(world: World) -> list[int]:
    return world.all_gather_object(world.rank)


def connect_late() -> list[int]:
    """Rank 1 connects so late that a working rank would long count as hanging.

    Once they have met, neither is hurried: that is not looked at here.
    """
    environment = LaunchEnvironment.read()
    time.sleep(2.0 * environment.rank)
    config = DistributedConfig(device="cpu", timeout_seconds=0.5)
    unhurried = mock.patch(
        "pipeline.ranks.connect.collective_seconds", return_value=DEADLINE_SECONDS
    )
    with unhurried, connect(environment, config) as world:
        return world.all_gather_object(world.rank)


@pytest.mark.slow
def test_ranks_that_start_are_waited_for_longer_than_those_at_work() -> None:
    assert call_in_processes(2, connect_late) == [[0, 1]] * 2


def connect_with_devices(kinds: Sequence[str]) -> str:
    """What ends a rank when the ranks find these kinds of device."""
    environment = LaunchEnvironment.read()
    with (
        mock.patch(
            "pipeline.ranks.connect._device", return_value=torch.device(kinds[environment.rank])
        ),
        mock.patch("torch.cuda.set_device"),
    ):
        try:
            with connect(environment, DistributedConfig(timeout_seconds=20)):
                return "nothing"
        except RankFailure as failure:
            return str(failure)


def test_a_host_without_a_gpu_among_others_is_named() -> None:
    """Its driver is broken: left to itself it takes its CPU, which cannot meet the others' GPUs."""
    (sentence,) = set(call_in_processes(3, connect_with_devices, ["cuda", "cuda", "cpu"]))
    assert sentence.startswith("rank 2 on ")
    assert "finds no GPU, and other ranks have one each: " in sentence


def test_one_process_names_no_rank() -> None:
    assert str(SINGLE.report_failure(ValueError("a sentence"))) == "a sentence"
    with pytest.raises(RankFailure, match=r"^a sentence$"), SINGLE.fail_together():
        raise ValueError("a sentence")


def test_a_failure_says_whether_another_rank_was_lost() -> None:
    assert SINGLE.report_failure(LostRank(GLOO)).cause == "lost_rank"
    assert SINGLE.report_failure(ValueError("lost another rank")).cause is None


@pytest.mark.parametrize("kind", [RuntimeError, DistBackendError])
def test_what_breaks_while_ranks_are_waited_for_says_that_one_is_lost(
    kind: type[RuntimeError],
) -> None:
    """Whatever its text is, in any version of torch; other errors are what they are."""
    with pytest.raises(LostRank, match=r"^Read error .* reset by peer$"), waiting_for_ranks():
        raise kind(GLOO)
    with pytest.raises(NotImplementedError), waiting_for_ranks():
        raise NotImplementedError(GLOO)
    assert SINGLE.report_failure(RuntimeError(GLOO)).cause is None


def test_the_environment_is_what_the_launcher_says(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    others = ("TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_USE_AGENT_STORE")
    for name in (*names, *others, "SLURM_JOB_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    assert LaunchEnvironment.read() == LaunchEnvironment()
    for name, value in zip(names, ("5", "1", "8", "4"), strict=True):
        monkeypatch.setenv(name, value)
    assert LaunchEnvironment.read() == LaunchEnvironment(
        rank=5, local_rank=1, world_size=8, local_world_size=4, is_launched=True
    )
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    assert LaunchEnvironment.read().attempt == 2
    for is_kept in (False, True):
        monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", str(is_kept))
        assert LaunchEnvironment.read().is_store_kept == is_kept
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    assert LaunchEnvironment.read().start == JobStart(job="12", number=0)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    assert LaunchEnvironment.read().start == JobStart(job="12", number=3)
    for value in ("", "-1", "two"):
        monkeypatch.setenv("LOCAL_RANK", value)
        with pytest.raises(ValueError, match=r"LOCAL_RANK is .*start with torchrun, or unset"):
            LaunchEnvironment.read()
    monkeypatch.delenv("LOCAL_RANK")
    with pytest.raises(ValueError, match="LOCAL_RANK is None"):
        LaunchEnvironment.read()


def test_fp32_is_never_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    with connect(LaunchEnvironment(), DistributedConfig(device="cpu")):
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.slow
@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_rank_that_waits_for_others_leaves_when_it_is_told_to(number: signal.Signals) -> None:
    program = """
import os
from pipeline.config.schema import DistributedConfig
from pipeline.ranks.launcher import LaunchEnvironment
from pipeline.ranks.connect import connect
from pipeline.ranks.stop import StopSignals

StopSignals()
print(flush=True)
with connect(LaunchEnvironment.read(), DistributedConfig(device="cpu")):
    pass
"""
    environment = os.environ | rank_environment(2, 0, free_port())
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()

        def is_gone() -> bool:
            child.send_signal(number)
            return child.poll() is not None

        try:
            wait_for(is_gone, "the end of a rank")
        finally:
            child.kill()
    assert child.returncode == -number


@pytest.mark.slow
def test_threads_that_need_the_interpreter_do_not_abort_a_process_that_leaves() -> None:
    """As gloo's do: with `sys.exit` in the place of `leave` this process dies of SIGABRT."""
    script = """
import threading, torch
from pipeline.ranks.failure import leave

def work():
    while True:
        torch.ones(8).sum()

for _ in range(4):
    threading.Thread(target=work, daemon=True).start()
print("said")
leave(75)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (75, "said\n", "")
