"""What a job may ask for."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.shard_set.options import made
from launch.spec import JobSpec, PrepareSpec, TrainSpec, seconds_of


@pytest.mark.parametrize(
    ("kind", "values", "sentence"),
    [
        (JobSpec, {"job_name": "a b"}, r"--job-name is 'a b'; expected letters, digits"),
        (JobSpec, {"cpus_per_task": 0}, r"--cpus-per-task is 0; expected 1 to 100000"),
        (JobSpec, {"time_limit": "1h"}, r"--time is '1h'; expected MINUTES, MINUTES:SECONDS, "),
        (JobSpec, {"time_limit": "0"}, r"--time is '0'; expected"),
        (JobSpec, {"time_limit": "1:2:3:4"}, r"--time is '1:2:3:4'; expected"),
        (JobSpec, {"time_limit": "1-2:60"}, r"--time is '1-2:60'; expected"),
        (JobSpec, {"time_limit": "1-"}, r"--time is '1-'; expected"),
        (JobSpec, {"time_limit": "٣"}, r"--time is '٣'; expected"),
        (JobSpec, {"time_limit": "1:60:00"}, r"--time is '1:60:00'; expected"),
        (JobSpec, {"time_limit": "0:00:00"}, r"--time is '0:00:00'; expected"),
        (JobSpec, {"partition": "a\nb"}, r"--partition is 'a\\nb'; expected one word"),
        (JobSpec, {"account": ""}, r"--account is empty; expected one word"),
        (JobSpec, {"python": ""}, r"--python is empty; expected an interpreter"),
        (JobSpec, {"container_mounts": "/data"}, r"'/data'; expected a --container beside it"),
        (
            JobSpec,
            {"container": "a", "container_mounts": "/a /b"},
            r"--container-mounts is '/a /b'; expected one word",
        ),
        (JobSpec, {"sbatch_options": ("qos=high",)}, r"'qos=high'; expected an option such as"),
        (JobSpec, {"sbatch_options": ("--qos=a\n#",)}, r"--sbatch-option is '--qos=a"),
        (TrainSpec, {"nodes": 0}, r"--nodes is 0; expected 1 to 100000"),
        (TrainSpec, {"gpus_per_node": -1}, r"--gpus-per-node is -1; expected 0 to 100000"),
        (TrainSpec, {"gpus_per_node": 0}, r"--gpus-per-node is 0, and --ranks-per-node is missing"),
        (TrainSpec, {"ranks_per_node": 0}, r"--ranks-per-node is 0; expected 1 to"),
        (TrainSpec, {"max_requeues": -1}, r"--max-requeues is -1; expected 0 to"),
        (TrainSpec, {"signal_lead_seconds": 59}, r"--signal-lead is 59; expected at least 60 sec"),
        (TrainSpec, {"time_limit": "0:05:00"}, r"less than the time limit, which is 300"),
        (PrepareSpec, {"array_size": 0}, r"--array-size is 0; expected 1 to 100000"),
    ],
)
def test_what_slurm_could_not_mean_is_refused(
    kind: type[JobSpec], values: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        kind(**values)


@given(
    days=st.integers(0, 30),
    hours=st.integers(0, 99),
    minutes=st.integers(0, 59),
    seconds=st.integers(1, 59),
    many=st.integers(1, 100_000),
)
def test_every_form_of_sbatch(days: int, hours: int, minutes: int, seconds: int, many: int) -> None:
    forms = {
        f"{many}": 60 * many,
        f"{many}:{seconds:02}": 60 * many + seconds,
        f"{hours}:{minutes:02}:{seconds:02}": (hours * 60 + minutes) * 60 + seconds,
        f"{many % 30}-{hours + 1}": (many % 30 * 24 + hours + 1) * 3600,
        f"{days + 1}-{hours}:{minutes}": (((days + 1) * 24 + hours) * 60 + minutes) * 60,
        f"{days}-{hours:02}:{minutes:02}:{seconds:02}": ((days * 24 + hours) * 60 + minutes) * 60
        + seconds,
    }
    assert {form: seconds_of(form) for form in forms} == forms


@given(st.text("0123456789:-. dh٣", max_size=12))
def test_only_the_forms_of_sbatch(word: str) -> None:
    if re.fullmatch(r"([0-9]+-)?[0-9]+(:[0-5]?[0-9]){0,2}", word):
        return
    assert seconds_of(word) == 0


def test_what_is_not_given_keeps_its_default() -> None:
    spec = made(TrainSpec, {"nodes": 2, "partition": None, "array_size": 4})
    assert spec == TrainSpec(nodes=2)


def test_a_container_brings_its_own_python_unless_told() -> None:
    assert TrainSpec().interpreter == ".venv/bin/python"
    assert TrainSpec(container="image.sif").interpreter == "python3"
    assert TrainSpec(container="image.sif", python="/opt/python").interpreter == "/opt/python"
