"""What the doctor says of facts, and a real examination on two ranks."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.doctor.checks import judge
from pipeline.doctor.facts import Facts
from pipeline.optim.precision import Arithmetic
from tests.integration.training import make_shards
from tests.pipeline.monitoring import REPOSITORY

GIB = 1 << 30
SOUND = Facts(
    rank=0,
    host="n1",
    local_world_size=2,
    rendezvous="n1:20001",
    interface="eth0",
    device="cpu",
    arithmetic=Arithmetic(host="n1", device="avx512, bf16", native=("bf16", "fp32"), emulated=()),
    cores=(0, 1, 2, 3),
    num_cores=8,
    shm_bytes=GIB,
    open_files=1 << 20,
    disk_bytes=100 * GIB,
    manifest="ab" * 32,
    num_shards=10,
    versions={"torch": "2.13.0", "ffcv": "1.0.2"},
)


def facts(**changes: Any) -> list[Facts]:
    """Of four ranks on two hosts, those of the last changed."""
    ranks = [dataclasses.replace(SOUND, rank=rank, host=f"n{1 + rank // 2}") for rank in range(4)]
    return [*ranks[:3], dataclasses.replace(ranks[3], **changes)]


def test_sound_hosts_pass() -> None:
    checks = judge(facts(), num_threads=1)
    assert all(check.is_right for check in checks)
    assert [check.title for check in checks] == [
        *(
            "ranks",
            "host names",
            "precision",
            "CPU cores",
            "/dev/shm",
            "open files",
            "run directory",
            "shard set",
        ),
        "versions",
        "answers",
    ]
    assert checks[0].text == "4, met at n1:20001: n1 (2, cpu, eth0), n2 (2, cpu, eth0)"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"open_files": 1024},
            r"open files: n2 allows 1,024, 4,096 are needed: raise 'ulimit -Hn'",
        ),
        ({"disk_bytes": GIB}, r"run directory: n2 has 1\.0 GiB free, 4\.0 GiB are needed"),
        ({"disk_bytes": "/x cannot be written to"}, r"run directory: n2: /x cannot be written to"),
        ({"manifest": "cd" * 32}, r"shard set: rank 3 on n2 finds cdcd.*, and rank 0 abab"),
        (
            {"manifest": "x is missing"},
            r"shard set: rank 3 on n2 finds x is missing, and rank 0 ab",
        ),
        ({"versions": {"torch": "2.12.0", "ffcv": "1.0.2"}}, r"torch is 2\.12\.0 on n2 and 2\.13"),
        ({"name_fault": "n2 does not resolve"}, r"host names: n2 does not resolve"),
        (
            {"stuck": ("the shard set",)},
            r"answers: the shard set is stuck on n2: no answer within 30 s",
        ),
        ({"versions": {"torch": "2.13.0"}}, r"ffcv is unknown on n2 and 1\.0\.2 on n1"),
        (
            {"versions": SOUND.versions | {"CUDA": "13.0"}},
            r"CUDA is 13\.0 on n2 and unknown on n1",
        ),
    ],
)
def test_one_rank_that_is_not_sound_is_named(changes: dict[str, Any], sentence: str) -> None:
    (wrong,) = (check for check in judge(facts(**changes), 1) if not check.is_right)
    assert re.search(sentence, f"{wrong.title}: {wrong.text}")


def test_a_host_that_cannot_compile_for_its_gpus_is_named() -> None:
    gpu = dataclasses.replace(SOUND.arithmetic, is_gpu=True)
    fault = "Triton needs a C compiler"
    checks = judge(facts(arithmetic=gpu, kernel_fault=fault), 1)
    (wrong,) = (check for check in checks if not check.is_right)
    assert (wrong.title, wrong.text) == ("kernels", f"n2: {fault}")
    (right,) = (check for check in judge(facts(arithmetic=gpu), 1) if check.title == "kernels")
    assert right.is_right


def test_gpus_of_two_kinds_are_named() -> None:
    kinds = ("H100", "H100", "A100", "A100")
    ranks = [
        dataclasses.replace(
            one, arithmetic=dataclasses.replace(SOUND.arithmetic, device=kind, host=one.host)
        )
        for one, kind in zip(facts(), kinds, strict=True)
    ]
    assert all(check.is_right for check in judge(ranks, 1)), "processors may be of two kinds"
    gpus = [
        dataclasses.replace(one, arithmetic=dataclasses.replace(one.arithmetic, is_gpu=True))
        for one in ranks
    ]
    (wrong,) = (check for check in judge(gpus, 1) if not check.is_right)
    assert wrong.text.startswith(
        "the GPUs are of different kinds (H100 on n1; A100 on n2), and each step takes as long as"
    )


@pytest.mark.parametrize(
    ("changes", "title"),
    [
        ({"cores": (0,)}, "CPU cores"),
        ({"shm_bytes": 256 << 20, "device": "cuda:0"}, "/dev/shm"),
        ({"manifest": "shards is no shard set"}, "shard set"),
    ],
)
def test_all_ranks_alike_can_be_unsound(changes: dict[str, Any], title: str) -> None:
    ranks = [dataclasses.replace(one, **changes) for one in facts()]
    (wrong,) = (check for check in judge(ranks, 1) if not check.is_right)
    assert wrong.title == title


def test_a_host_with_few_cores_is_not_to_blame_for_that() -> None:
    ranks = [dataclasses.replace(one, cores=(0, 1), num_cores=2) for one in facts()]
    checks = judge(ranks, num_threads=4)
    assert {check.is_right for check in checks} == {True}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, "avx512, bf16 on n1: --precision auto is bf16"),
        (
            {
                "arithmetic": Arithmetic(
                    host="n2", device="avx2", native=("fp32",), emulated=("bf16", "fp16")
                )
            },
            "avx512, bf16 on n1; avx2 on n2: --precision auto is fp32; bf16 is emulated on n2: "
            "a step takes 10 (cifar10) to 23 times (alexnet_fast) as long as in fp32 with AVX2",
        ),
    ],
)
def test_the_instruction_sets_mean_a_precision(changes: dict[str, Any], sentence: str) -> None:
    (check,) = (check for check in judge(facts(**changes), 1) if check.title == "precision")
    assert check.is_right
    assert check.text.startswith(sentence)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_run_directory_that_may_not_be_looked_at_is_named(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o700)
    script = """
import os, sys
from pathlib import Path
from pipeline.doctor.facts import _find_room

os.seteuid(65534)
print(_find_room(Path(sys.argv[1])))
"""
    where = tmp_path / "closed/runs/x"
    command = [sys.executable, "-c", script, str(where)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    expected = f"{where} cannot be looked at (Permission denied): give another --run-dir\n"
    assert done.stdout == expected


def examine(*options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launch", "doctor", "--nproc", "2", *map(str, options)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_an_examination_of_this_machine(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "shards")
    done = examine("--shards", shards, "--run-dir", tmp_path / "run")
    assert done.returncode == 0, done.stdout + done.stderr
    titles = [line.partition(":")[0] for line in done.stdout.splitlines()]
    assert titles == [
        *("ok    ranks", "ok    all-reduce", "ok    clocks", "ok    host names"),
        *("ok    precision", "ok    CPU cores", "ok    /dev/shm", "ok    open files"),
        *("ok    run directory", "ok    shard set", "ok    versions", "ok    answers"),
    ]
    next(shards.glob("train-*.tar")).unlink()
    done = examine("--shards", shards, "--run-dir", tmp_path / "run")
    assert done.returncode == 1
    assert re.search(r"FAIL  shard set: rank 0 on .*train-0.* is missing", done.stdout)
    assert done.stderr == "error: 1 of 12 checks failed\n"
