"""What conversions publish: of tasks, of rejected images, when killed, and on bad disks."""

from __future__ import annotations

import contextlib
import signal
from collections import Counter
from pathlib import Path

import pytest

from data_prep.convert import metrics as metrics_module
from data_prep.convert.assignment import Task
from data_prep.convert.metrics import Done, publishing
from data_prep.convert.output import ConversionError
from data_prep.shard_set.conversion_metrics import CONVERSION_METRICS, STAGES
from tests.data_prep.conftest import SLOW_OPTIONS, SYNTHETIC_OPTIONS
from tests.data_prep.raw_data import (
    hash_tree,
    run_cli,
    start_held,
    wait_until_held,
    write_folder,
)
from tests.machine import small_disk
from tests.pipeline.monitoring import Samples, assert_clean_exposition, parse


def value(samples: Samples, name: str, task: str = "", **labels: str) -> float:
    """Of the conversion to `shards`."""
    all_labels = {"conversion": "shards", "task": task, **labels}
    return samples[f"alexnet_convert_{name}", frozenset(all_labels.items())]


@pytest.mark.slow
def test_each_task_publishes_its_part_and_the_shards_are_the_same(
    tmp_path: Path, synthetic: Path
) -> None:
    output, published = tmp_path / "shards", tmp_path / "conversions"
    command = ("shard", "synthetic", "--output", output, *SYNTHETIC_OPTIONS, "--num-tasks", 2)
    for task in (0, 1):
        result = run_cli(*command, "--task", task, "--metrics-dir", published)
        assert result.returncode == 0, result.stderr
    files = [published / f"convert-shards-{task}.prom" for task in (0, 1)]
    assert sorted(published.iterdir()) == files
    found = [parse(path.read_bytes()) for path in files]
    for number, (path, samples) in enumerate(zip(files, found, strict=True)):
        assert_clean_exposition(path.read_bytes())
        assert {name for name, _ in samples} == {metric.name for metric in CONVERSION_METRICS}
        done = value(samples, "samples_total", str(number))
        assert done == value(samples, "expected_samples", str(number))
        seconds = {s: value(samples, "seconds_total", str(number), stage=s) for s in STAGES}
        assert min(seconds[stage] for stage in ("read", "convert", "write")) > 0
        assert seconds["unpack"] == 0
        assert path.stat().st_mtime - value(
            samples, "last_progress_timestamp_seconds", str(number)
        ) == pytest.approx(0, abs=60)
    assert sum(value(s, "samples_total", str(n)) for n, s in enumerate(found)) == 85
    written = sum(value(s, "bytes_written_total", str(n)) for n, s in enumerate(found))
    assert written == sum(path.stat().st_size for path in output.glob("*.tar"))
    assert run_cli("merge", output).returncode == 0
    assert hash_tree(output) == hash_tree(synthetic)


@pytest.mark.slow
def test_rejected_images_are_counted_by_reason(tmp_path: Path) -> None:
    images = write_folder(tmp_path / "images")
    whole = (images / "train" / "cat" / "0000.jpg").read_bytes()
    bad = {"empty": b"", "truncated": whole[: len(whole) // 2], "not_an_image": b"text" * 100}
    for number, content in enumerate((*bad.values(), b"")):
        (images / "train" / "dog" / f"{number:04d}.jpg").write_bytes(content)
    options = ("--max-reject-ratio", 1, "--metrics-dir", tmp_path)
    result = run_cli(
        "shard", "folder", "--input", images, "--output", tmp_path / "shards", *options
    )
    assert result.returncode == 0, result.stderr
    samples = parse((tmp_path / "convert-shards.prom").read_bytes())
    assert value(samples, "samples_total") == 12
    rejected = {
        dict(labels)["reason"]: count
        for (name, labels), count in samples.items()
        if name == "alexnet_convert_rejected_total"
    }
    expected = {"empty": 2, "truncated": 1, "not_an_image": 1, "undecodable": 0, "too_large": 0}
    assert rejected == expected
    assert value(samples, "seconds_total", stage="publish") > 0


@pytest.mark.slow
def test_a_killed_conversion_leaves_a_whole_file_and_the_next_one_goes_on(tmp_path: Path) -> None:
    output, published = tmp_path / "shards", tmp_path / "conversions"
    options = (*SLOW_OPTIONS, "--metrics-dir", published, "--workers", 1)
    command = ("shard", "synthetic", "--output", output, *options)
    path = published / "convert-shards.prom"
    with start_held(tmp_path / "first", 3, *command) as conversion:
        wait_until_held(tmp_path / "first")
        conversion.kill()
        conversion.communicate()
    samples = parse(path.read_bytes())
    assert value(samples, "expected_samples") == 2000
    assert_clean_exposition(path.read_bytes())
    (published / ".tmp-convert-shards.prom-0123abcd").touch()
    with start_held(tmp_path / "second", 6, *command) as conversion:
        wait_until_held(tmp_path / "second")
        conversion.send_signal(signal.SIGTERM)
        conversion.communicate()
    assert [*published.iterdir()] == [path]
    samples = parse(path.read_bytes())
    expected = value(samples, "expected_samples")
    assert expected == 1700, "three shards were finished"
    assert 0 < value(samples, "samples_total") < expected
    assert value(samples, "bytes_written_total") > 0, "the last values are those at the end"


@pytest.mark.slow
@pytest.mark.parametrize("is_other", [True, False])
def test_what_cannot_be_written_at_the_start_is_said_in_one_sentence(
    tmp_path: Path, is_other: bool
) -> None:
    if is_other:
        with publishing(tmp_path, tmp_path / "elsewhere" / "shards", None):
            pass
        directory = tmp_path
        expected = f"error: {tmp_path}/convert-shards.prom is not of this conversion, but begins"
    else:
        directory = tmp_path / "file"
        directory.touch()
        expected = f"error: {directory}: File exists; once that is mended"
    output = tmp_path / "shards"
    command = ("shard", "synthetic", "--output", output, *SYNTHETIC_OPTIONS)
    result = run_cli(*command, "--metrics-dir", directory)
    assert result.returncode == 1
    assert result.stderr.startswith(expected)
    assert result.stderr.count("\n") == 1
    assert not [*output.glob("*.tar")]


def test_a_disk_that_fills_up_costs_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_module, "_PUBLISH_SECONDS", 0)
    done: Done = Counter({None: 10, "empty": 1})
    disk = tmp_path / "disk"
    with small_disk(disk, "64k"):
        with publishing(disk, tmp_path / "shards", Task(3, 5)) as metrics:
            filler = disk / "filler"
            with contextlib.suppress(OSError), filler.open("ab", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
            for _ in range(3):
                metrics.show(done)
            assert [record.levelname for record in caplog.records] == ["WARNING"]
            assert f"cannot write metrics: {disk}/convert-shards-3.prom" in caplog.text
            filler.unlink()
        samples = parse((disk / "convert-shards-3.prom").read_bytes())
        assert value(samples, "samples_total", "3") == 11
        assert value(samples, "rejected_total", "3", reason="empty") == 1


def test_a_name_that_is_no_text_is_published(tmp_path: Path) -> None:
    shards = tmp_path / b"caf\xe9".decode(errors="surrogateescape")
    with publishing(tmp_path, shards, None):
        pass
    with publishing(tmp_path, shards, None):  # the same conversion again
        pass
    (path,) = tmp_path.glob("*.prom")
    assert 'conversion="caf\ufffd"' in path.read_text()
    path.write_text("# {}\n")
    with (
        pytest.raises(ConversionError, match="not of this conversion"),
        publishing(tmp_path, shards, None),
    ):
        pass
