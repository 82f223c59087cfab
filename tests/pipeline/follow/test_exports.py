"""Exports to W&B and trackio: whole runs, killed and resumed, read back."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launch.__main__ import main
from pipeline.run.directory import RunDirectory
from tests.pipeline.follow.histories import (
    Numbers,
    bits,
    killed_and_resumed,
    make_run,
    numbers_of,
    write,
)

_BLOCK = 32768


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return make_run(tmp_path)


def export(run: RunDirectory, to: str) -> Numbers:
    """Returns what has to be there."""
    rows = killed_and_resumed()
    write(run, rows)
    command = [sys.executable, "-m", "launch", "follow", str(run.path), "--to", to]
    subprocess.run(command, check=True, capture_output=True)
    return numbers_of(rows)


def records_of(content: bytes) -> Iterator[bytes]:
    """Those of a file of W&B: parts with a header of 7 bytes, in blocks of 32 KiB, as LevelDB's."""
    place, record = 7, b""
    while place < len(content):
        if (left := _BLOCK - place % _BLOCK) < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


@pytest.mark.slow
def test_the_file_of_wandb_has_each_number_once_and_can_be_synced(run: RunDirectory) -> None:
    """Its records are read by W&B's own messages; its package has no reader for Python."""
    from wandb.proto.wandb_internal_pb2 import Record

    wanted = export(run, "wandb")
    (path,) = run.path.glob("wandb/*/*.wandb")
    found: Numbers = {}
    texts: dict[str, Any] = {}
    for content in records_of(path.read_bytes()):
        record = Record.FromString(content)
        values = {item.nested_key[0]: item.value_json for item in record.history.item}
        for tag, value in values.items():
            if not tag.startswith("_"):
                found.setdefault(tag, []).append((record.history.step.num, json.loads(value)))
        texts |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        texts |= {
            item.key: json.loads(item.value_json) for item in record.summary.update if item.key
        }
    assert bits(found) == bits(wanted)
    assert texts["model.name"] == "alexnet_cifar"
    assert texts["outcome"] == "stopped"
    assert texts["alarm/not_learning"] == "alarm: loss 6.9"
    command = [sys.executable, "-m", "wandb", "sync", "--dry-run", str(path.parent)]
    variables = os.environ | {"WANDB_ERROR_REPORTING": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=variables, check=True)
    assert "Would sync 1 run" in done.stderr


READ = """
import json, sys, trackio
from trackio.sqlite_storage import SQLiteStorage
project = sys.argv[1]
(run,) = trackio.Api().runs(project)
logs = SQLiteStorage.get_logs(project, run.name, run_id=run.id)
print(json.dumps([run.name, run.config, logs]))
"""


@pytest.mark.slow
def test_trackio_finds_each_number_once(run: RunDirectory) -> None:
    """It does not go with the pinned Pillow, so it is tested where it is installed."""
    pytest.importorskip("trackio")
    wanted = export(run, "trackio")
    (project,) = (path.stem for path in (run.path / "trackio").iterdir())
    variables = os.environ | {"TRACKIO_DIR": str(run.path / "trackio")}
    done = subprocess.run(
        [sys.executable, "-c", READ, project], capture_output=True, env=variables, check=True
    )
    name, config, logs = json.loads(done.stdout)
    found: Numbers = {}
    for values in logs:
        for tag in values.keys() - {"step", "timestamp"}:
            found.setdefault(tag, []).append((values["step"], values[tag]))
    assert bits(found) == bits(wanted)
    assert name == "run"
    assert (config["model.name"], config["outcome"]) == ("alexnet_cifar", "stopped")


@pytest.mark.parametrize("option", ["--once", "--tracking-uri=http://localhost"])
def test_options_of_followers_are_refused(
    run: RunDirectory, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["follow", str(run.path), "--to", "wandb", option]) == 1
    name = option.partition("=")[0]
    assert f"{name} has no effect with --to wandb" in capsys.readouterr().err
