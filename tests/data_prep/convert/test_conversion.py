"""Whole conversions: the same bytes however they come about, and what is refused."""

from __future__ import annotations

import io
import os
import re
import resource
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from data_prep.convert.conversion import convert
from data_prep.convert.options import Options
from data_prep.convert.output import ConversionError
from data_prep.shard_set.manifest import read_manifest
from data_prep.sources.folder import open_folder
from data_prep.sources.samples import Sample
from tests.data_prep.cifar_archive import cifar10_files, write_unpacked
from tests.data_prep.conftest import SLOW_OPTIONS, SYNTHETIC_OPTIONS, shard_synthetic
from tests.data_prep.raw_data import (
    copy_tree,
    errors_of,
    hash_tree,
    jpeg,
    let_go,
    run_cli,
    start_held,
    wait_until_held,
    write_folder,
)
from tests.machine import DEADLINE_SECONDS, is_running, wait_until


def children_of(pid: int) -> list[int]:
    """Its worker processes."""
    children = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            command = (path / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent == pid and b"spawn_main" in command:
            children.append(int(path.name))
    return children


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 4])
def test_bytes_do_not_depend_on_the_number_of_workers(
    tmp_path: Path, synthetic: Path, num_workers: int
) -> None:
    found = shard_synthetic(tmp_path / "out", *SYNTHETIC_OPTIONS, "--workers", num_workers)
    assert found == hash_tree(synthetic)


@pytest.mark.slow
def test_bytes_do_not_depend_on_how_often_it_was_killed(
    tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    output = tmp_path / "out"
    for num_shards, num_samples in ((0, 30), (2, 99), (5, 1)):
        held = tmp_path / f"held-{num_shards}"
        command = ("shard", "synthetic", "--output", output, *SLOW_OPTIONS, "--workers", 2)
        job = start_held(held, num_shards, *command, num_samples=num_samples)
        wait_until_held(held, 2)
        workers = children_of(job.pid)
        assert len(workers) == 2
        job.kill()
        job.communicate(timeout=DEADLINE_SECONDS)
        assert job.returncode == -signal.SIGKILL
        # They must not outlive it.
        wait_until(lambda: not any(is_running(worker) for worker in workers))  # noqa: B023
        assert not (output / "_info.json").exists()
    assert shard_synthetic(output, *SLOW_OPTIONS) == undisturbed


@pytest.mark.slow
def test_finished_shards_are_not_written_again(tmp_path: Path, undisturbed: dict[str, str]) -> None:
    output, held = tmp_path / "out", tmp_path / "held"
    command = ("shard", "synthetic", "--output", output, *SLOW_OPTIONS, "--workers", 1)
    job = start_held(held, 4, *command)
    wait_until_held(held)
    job.kill()
    job.communicate(timeout=DEADLINE_SECONDS)
    written = (output / "train-000000.tar").stat().st_mtime_ns
    (output / "train-000001.tar").unlink()
    result = run_cli("shard", "synthetic", "--output", output, *SLOW_OPTIONS)
    assert "of 20 shards are finished already" in result.stderr
    assert (output / "train-000000.tar").stat().st_mtime_ns == written
    assert hash_tree(output) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train-000000.npz", "settings.json"])
@pytest.mark.parametrize("keep", [0, 20, 0.9])
def test_damaged_notes_of_a_killed_conversion(
    tmp_path: Path, undisturbed: dict[str, str], name: str, keep: float
) -> None:
    output, held = tmp_path / "out", tmp_path / "held"
    command = ("shard", "synthetic", "--output", output, *SLOW_OPTIONS, "--workers", 1)
    job = start_held(held, 2, *command)
    wait_until_held(held)
    job.kill()
    job.communicate(timeout=DEADLINE_SECONDS)
    path = output / ".conversion" / name
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content) if keep < 1 else keep)])
    result = run_cli("shard", "synthetic", "--output", output, *SLOW_OPTIONS)
    if name == "settings.json":
        assert result.stderr.startswith(f"error: {path} is damaged (")
        assert result.stderr.count("\n") == 1
    else:
        assert hash_tree(output) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("whole_group", [False, True])
def test_interrupt_is_one_sentence(tmp_path: Path, stop: signal.Signals, whole_group: bool) -> None:
    output, held = tmp_path / "out", tmp_path / "held"
    command = ("shard", "synthetic", "--output", output, *SLOW_OPTIONS, "--workers", 2)
    job = start_held(held, 1, *command)
    wait_until_held(held, 2)
    for pid in [job.pid, *(children_of(job.pid) if whole_group else [])][::-1]:
        os.kill(pid, stop)
    errors = errors_of(job)
    assert job.returncode == 130
    assert errors == "error: stopped; the same command goes on from here\n"
    assert not list(output.glob(".tmp-*"))


@pytest.mark.slow
def test_death_of_a_worker_fails_the_job(tmp_path: Path, undisturbed: dict[str, str]) -> None:
    output, held = tmp_path / "out", tmp_path / "held"
    command = ("shard", "synthetic", "--output", output, *SLOW_OPTIONS, "--workers", 2)
    job = start_held(held, 1, *command)
    wait_until_held(held, 2)
    os.kill(children_of(job.pid)[0], signal.SIGKILL)
    errors = errors_of(job)
    assert job.returncode == 1
    assert errors.startswith("error: a worker process died")
    assert errors.count("\n") == 1
    assert not list(output.glob(".tmp-*"))
    assert shard_synthetic(output, *SLOW_OPTIONS) == undisturbed


class HungryReader:
    def stamp(self, sample: Sample) -> int:
        return 0

    def read(self, sample: Sample) -> bytes:
        raise MemoryError(sample.locator)


def test_want_of_memory_is_one_sentence(tmp_path: Path) -> None:
    source = replace(open_folder(write_folder(tmp_path / "raw")), reader=HungryReader())
    options = Options(shards=tmp_path / "out", samples_per_shard=4, workers=1, max_reject_ratio=0)
    with pytest.raises(ConversionError, match=r"ran out of memory; .* fewer than --workers 1"):
        convert(source, options, io.StringIO())


@pytest.mark.slow
def test_two_conversions_into_one_folder_are_refused(tmp_path: Path) -> None:
    output, held = tmp_path / "out", tmp_path / "held"
    command = ("shard", "synthetic", "--output", output, *SLOW_OPTIONS, "--workers", 1)
    first = start_held(held, 1, *command)
    wait_until_held(held)
    second = run_cli("shard", "synthetic", "--output", output, *SLOW_OPTIONS)
    assert second.returncode == 1
    assert f"another conversion is writing to {output}" in second.stderr
    let_go(held)
    first.communicate(timeout=DEADLINE_SECONDS)
    assert first.returncode == 0


@pytest.mark.slow
def test_full_disk_is_one_sentence_and_can_be_mended(tmp_path: Path, synthetic: Path) -> None:
    output = tmp_path / "out"

    def limit_file_size() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))  # half a shard

    command = ("shard", "synthetic", "--output", output, *SYNTHETIC_OPTIONS)
    result = run_cli(*command, preexec_fn=limit_file_size)
    assert result.returncode == 1
    assert re.fullmatch(
        rf"error: {output}/(train|val)-00000\d\.tar: File too large; once that is mended, "
        "run the same command again\n",
        result.stderr,
    )
    assert result.stderr.count("\n") == 1
    assert [path.name for path in output.iterdir()] == [".conversion"]
    assert shard_synthetic(output, *SYNTHETIC_OPTIONS) == hash_tree(synthetic)


def test_finished_conversion_says_so(tmp_path: Path, synthetic: Path) -> None:
    output = copy_tree(synthetic, tmp_path / "out")
    result = run_cli("shard", "synthetic", "--output", output, *SYNTHETIC_OPTIONS)
    assert result.returncode == 0
    assert "60 train + 25 val samples of 10 classes in 5 shards (complete already)" in result.stdout
    assert hash_tree(output) == hash_tree(synthetic)


def test_finished_conversion_that_lost_a_shard_is_not_called_complete(
    tmp_path: Path, synthetic: Path
) -> None:
    output = copy_tree(synthetic, tmp_path / "out")
    (output / "train-000001.tar").unlink()
    result = run_cli("shard", "synthetic", "--output", output, *SYNTHETIC_OPTIONS)
    assert result.returncode == 1
    assert "train-000001.tar is missing" in result.stderr


OTHER_SETTINGS = [
    (("--seed", 1), "seed was 0 and is 1"),
    (("--samples-per-shard", 19), "samples_per_shard was 20 and is 19"),
    (("--encoding", "jpeg"), "encoding was rgb and is jpeg"),
    (("--size", 48), "size was None and is 48"),
    (("--num-train", 61), "the samples are not the same"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("options", "message"), OTHER_SETTINGS)
def test_other_settings_are_refused(
    synthetic: Path, options: tuple[object, ...], message: str
) -> None:
    before = hash_tree(synthetic)
    usual = dict(zip(SYNTHETIC_OPTIONS[::2], SYNTHETIC_OPTIONS[1::2], strict=True))
    words = [word for pair in (usual | {options[0]: options[1]}).items() for word in pair]
    result = run_cli("shard", "synthetic", "--output", synthetic, *words)
    assert result.returncode == 1
    assert f"--output {synthetic} was begun with other settings: " in result.stderr
    assert message in result.stderr
    assert hash_tree(synthetic) == before


@pytest.mark.slow
def test_other_settings_are_refused_for_an_unfinished_set_too(tmp_path: Path) -> None:
    output = tmp_path / "out"
    raw = write_folder(tmp_path / "raw")
    (raw / "train/cat/bad.jpg").write_bytes(b"")
    assert run_cli("shard", "folder", "--input", raw, "--output", output).returncode == 1
    result = run_cli("shard", "folder", "--input", raw, "--output", output, "--seed", 1)
    assert "was begun with other settings: seed was 0 and is 1" in result.stderr


def test_folder_of_other_things_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    (tmp_path / ".tmp-notes").write_text("precious too")
    result = run_cli("shard", "synthetic", "--output", tmp_path, *SYNTHETIC_OPTIONS)
    assert result.returncode == 1
    assert f"--output {tmp_path} is not empty (.tmp-notes, …)" in result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"thesis.tex", ".tmp-notes"}


@pytest.mark.slow
def test_rejected_images_leave_the_others_where_they_are(tmp_path: Path) -> None:
    raw = write_folder(tmp_path / "raw", 10, 3)
    lengths, members = [], []
    for name, ratio in (("good", 0), ("bad", 0.2)):
        output = tmp_path / name
        command = ("shard", "folder", "--input", raw, "--output", output)
        options = ("--samples-per-shard", 7, "--max-reject-ratio", ratio)
        result = run_cli(*command, *options)
        assert result.returncode == 0, result.stderr
        lengths.append(sum(read_manifest(output).split("train").shard_lengths))
        members.append({path.name: path.read_bytes() for path in output.glob("train-*.tar")})
        (raw / "train/cat/0003.jpg").write_bytes(b"")
        (raw / "train/dog/0009.jpg").write_bytes(b"no image")
    assert lengths == [20, 18]
    assert "rejected: 1 empty, 1 not_an_image; rewritten: none" in result.stdout
    assert [line for line in result.stderr.splitlines() if "left out" in line] == [
        "left out: train/cat/0003.jpg (empty: it has no bytes; copy it again from its source)",
        "left out: train/dog/0009.jpg (not_an_image: it begins with b'no image', which Pillow "
        "takes for no image; remove it, or convert it to JPEG or PNG)",
    ]
    manifest = read_manifest(output)
    assert manifest.rejected == {"empty": 1, "not_an_image": 1}
    assert manifest.statistics.num_images == 18
    assert 1 <= sum(members[0][name] != members[1][name] for name in members[0]) <= 2


@pytest.mark.slow
def test_too_many_rejected_images_stop_the_job(tmp_path: Path) -> None:
    raw = write_folder(tmp_path / "raw", 10, 10)
    for number in range(7):
        (raw / f"val/dog/000{number}.jpg").write_bytes(b"")
    command = ("shard", "folder", "--input", raw, "--output", tmp_path / "out")
    result = run_cli(*command, "--max-reject-ratio", 0.1)
    assert result.returncode == 1
    assert "7 of 40 images so far cannot be used, more than the allowed share" in result.stderr
    assert "val/dog/0000.jpg (empty: it has no bytes; copy it again" in result.stderr
    assert "), val/dog/0001.jpg (empty" in result.stderr
    assert "and 2 more; repair them and run the same command again" in result.stderr
    assert not (tmp_path / "out/_info.json").exists()
    good = (raw / "val/dog/0009.jpg").read_bytes()
    (raw / "val/dog/0000.jpg").write_bytes(good)
    again = run_cli(*command, "--max-reject-ratio", 0.15)
    assert again.returncode == 0, again.stderr
    assert "rejected: 6 empty" in again.stdout


@pytest.mark.slow
def test_split_without_a_usable_image_is_refused(tmp_path: Path) -> None:
    raw = write_folder(tmp_path / "raw", 1, 1)
    for path in raw.glob("val/*/*"):
        path.write_bytes(b"")
    command = ("shard", "folder", "--input", raw, "--output", tmp_path / "out")
    result = run_cli(*command, "--max-reject-ratio", 1)
    assert result.returncode == 1
    assert "no image of the split 'val' can be used" in result.stderr


@pytest.mark.slow
def test_sizes_that_differ(tmp_path: Path) -> None:
    raw = write_folder(tmp_path / "raw")
    (raw / "train/cat/0001.jpg").write_bytes(jpeg(height=50, width=50))
    command = ("shard", "folder", "--input", raw, "--output")
    result = run_cli(*command, tmp_path / "rgb", "--encoding", "rgb")
    assert result.returncode == 1
    expected = "differ in size (40×60, 50×50); --encoding rgb needs one: give --size 256 (for rec"
    assert expected in result.stderr
    assert run_cli(*command, tmp_path / "jpeg").returncode == 0
    manifest = read_manifest(tmp_path / "jpeg")
    assert (manifest.image_height, manifest.image_width) == (None, None)
    assert manifest.statistics.mean_image_filename is None
    assert run_cli(*command, tmp_path / "sized", "--encoding", "rgb", "--size", 32).returncode == 0
    manifest = read_manifest(tmp_path / "sized")
    assert (manifest.image_height, manifest.image_width) == (32, 32)
    assert manifest.rewritten == {"resized": 12}


@pytest.mark.slow
def test_only_val_images_differ_in_size(tmp_path: Path) -> None:
    raw, output = write_folder(tmp_path / "raw"), tmp_path / "out"
    (raw / "val/cat/0001.jpg").write_bytes(jpeg(height=50, width=50))
    assert run_cli("shard", "folder", "--input", raw, "--output", output).returncode == 0
    assert read_manifest(output).statistics.mean_image_filename is None
    result = run_cli("verify", output, "--full")
    assert (result.returncode, result.stderr) == (0, "")


def test_cifar10_archive_is_sharded(tmp_path: Path) -> None:
    raw = write_unpacked(tmp_path / "raw", "cifar-10-batches-py", cifar10_files())
    output = tmp_path / "out"
    result = run_cli("shard", "cifar10", "--input", raw, "--output", output)
    assert result.returncode == 0, result.stderr
    manifest = read_manifest(output)
    assert (manifest.source, manifest.encoding) == ("cifar10", "rgb")
    assert {name: split.num_samples for name, split in manifest.splits.items()} == {
        "train": 100,
        "val": 20,
    }
