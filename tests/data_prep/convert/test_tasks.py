"""Conversions that several tasks share, on one host or more, and their merge."""

from __future__ import annotations

import fcntl
import shutil
from pathlib import Path

import pytest

from data_prep.convert.assignment import ShardName
from data_prep.convert.conversion import merge
from data_prep.convert.output import ConversionError, record_path
from data_prep.convert.records import load_record, save_record
from data_prep.convert.shard import find_record
from data_prep.shard_set.files import remove_leftovers
from data_prep.shard_set.manifest import read_manifest
from tests.data_prep.conftest import SLOW_OPTIONS, SYNTHETIC_OPTIONS
from tests.data_prep.raw_data import (
    copy_tree,
    hash_tree,
    let_go,
    run_cli,
    start_held,
    wait_until_held,
    write_folder,
)
from tests.machine import DEADLINE_SECONDS

NUM_TASKS = 3


def command(
    output: Path, task: int, *options: object, num_tasks: int = NUM_TASKS
) -> tuple[object, ...]:
    division = ("--num-tasks", num_tasks, "--task", task, "--workers", 1)
    return ("shard", "synthetic", "--output", output, *division, *options)


@pytest.fixture(scope="module")
def two_of_three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tasks 0 and 2 have done their parts of `synthetic`; the second shard is missing."""
    output = tmp_path_factory.mktemp("parts") / "shards"
    for task, num_shards in ((0, 2), (2, 1)):
        result = run_cli(*command(output, task, *SYNTHETIC_OPTIONS))
        assert result.returncode == 0, result.stderr
        said = f": task {task} of 3 has written its shards, {num_shards} in all ("
        assert said in result.stdout
    assert sorted(path.name for path in output.glob("*.tar")) == [
        "train-000000.tar",
        "train-000002.tar",
        "val-000000.tar",
    ]
    assert not (output / "_info.json").exists()
    return output


@pytest.fixture
def parts(tmp_path: Path, two_of_three: Path) -> Path:
    return copy_tree(two_of_three, tmp_path / "parts")


@pytest.mark.slow
def test_tasks_at_the_same_time_make_what_one_conversion_makes(
    tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    output, held = tmp_path / "out", tmp_path / "held"
    jobs = [start_held(held, 2, *command(output, task, *SLOW_OPTIONS)) for task in range(NUM_TASKS)]
    wait_until_held(held, NUM_TASKS)
    jobs[1].kill()
    jobs[1].communicate(timeout=DEADLINE_SECONDS)
    early = run_cli("merge", output)
    assert early.returncode == 1
    assert f"another conversion is writing to {output}" in early.stderr
    let_go(held)
    again = run_cli(*command(output, 1, *SLOW_OPTIONS))  # while the others go on
    assert again.returncode == 0, again.stderr
    for task in (0, 2):
        _, errors = jobs[task].communicate(timeout=DEADLINE_SECONDS)
        assert jobs[task].returncode == 0, errors
    assert not (output / "_info.json").exists()
    merged = run_cli("merge", output)
    assert merged.returncode == 0, merged.stderr
    assert "1,900 train + 100 val samples of 10 classes in 20 shards (merged)" in merged.stdout
    assert hash_tree(output) == undisturbed
    assert run_cli("merge", output).returncode == 0  # nothing left to do
    late = run_cli(*command(output, 1, *SLOW_OPTIONS))
    assert "complete already" in late.stdout
    assert hash_tree(output) == undisturbed


@pytest.mark.slow
def test_merge_says_what_is_missing_and_who_makes_it(parts: Path) -> None:
    before = hash_tree(parts)
    result = run_cli("merge", parts)
    assert result.returncode == 1
    assert result.stderr == (
        f"error: {parts} lacks 2 of 5 shards, or they are cut off (train-000001.tar, "
        "val-000001.tar): run the shard command again with --num-tasks 3 --task 1\n"
    )
    assert hash_tree(parts) == before


@pytest.mark.slow
def test_merge_notices_what_was_lost_since(parts: Path, synthetic: Path) -> None:
    assert run_cli(*command(parts, 1, *SYNTHETIC_OPTIONS)).returncode == 0
    tar, record = parts / "val-000000.tar", parts / ".conversion/val-000000.npz"
    for path, keep in ((tar, -1), (tar, 0), (record, -1), (record, 0)):
        content = path.read_bytes()
        path.write_bytes(content[:keep])
        with pytest.raises(ConversionError, match=r"lacks 1 of 5 shards, .* \(val-000000\.tar\): "):
            merge(parts, max_reject_ratio=0)
        path.unlink()
        with pytest.raises(ConversionError, match=r"with --num-tasks 3 --task 0$"):
            merge(parts, max_reject_ratio=0)
        path.write_bytes(content)
    tar.unlink()
    assert run_cli(*command(parts, 0, *SYNTHETIC_OPTIONS)).returncode == 0
    merge(parts, max_reject_ratio=0)
    assert hash_tree(parts) == hash_tree(synthetic)


@pytest.mark.slow
def test_any_damage_of_a_record_is_noticed(parts: Path) -> None:
    name = ShardName("train", 0)
    path = record_path(parts, name)
    content, record = path.read_bytes(), find_record(parts, name)
    for place in range(content.index(b"PK\1\2"), len(content)):  # what no checksum covers
        for change in (1, 8, 64):
            changed = bytes([content[place] ^ change])
            path.write_bytes(content[:place] + changed + content[place + 1 :])
            found = find_record(parts, name)
            assert found is None or repr(found) == repr(record), place


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrong", [{"rewritten": {"star": None}}, {"sizes": [[1, "a"]]}, {"rejected": [["a", "b"]]}, {}]
)
def test_a_record_that_does_not_add_up_is_none(wrong: dict[str, object], parts: Path) -> None:
    name = ShardName("train", 0)
    path = record_path(parts, name)
    facts, arrays = load_record(path)
    save_record(path, facts | wrong, arrays)
    assert (find_record(parts, name) is None) == bool(wrong)


@pytest.mark.slow
def test_damaged_settings_are_one_sentence(parts: Path) -> None:
    path = parts / ".conversion/settings.json"
    content = path.read_bytes()
    for damaged in (b"", content[:-1], content.replace(b'"star"', b'"stor"'), b'{"settings": 3}'):
        path.write_bytes(damaged)
        with pytest.raises(ConversionError, match=r"settings\.json is damaged \(.*empty the --out"):
            merge(parts, max_reject_ratio=0)


@pytest.mark.slow
def test_conversion_without_tasks_finishes_what_tasks_began(parts: Path, synthetic: Path) -> None:
    result = run_cli("shard", "synthetic", "--output", parts, *SYNTHETIC_OPTIONS)
    assert result.returncode == 0, result.stderr
    assert "3 of 5 shards are finished already" in result.stderr
    assert hash_tree(parts) == hash_tree(synthetic)


@pytest.mark.slow
def test_merge_needs_no_source_and_a_task_no_shard(tmp_path: Path) -> None:
    raw, output = write_folder(tmp_path / "raw", 9, 4), tmp_path / "out"
    options = ("--input", raw, "--size", 24, "--name", "Cats and dogs")
    for task in (2, 0, 1):  # of which the last has none of the two shards
        division = ("--num-tasks", 3, "--task", task)
        result = run_cli("shard", "folder", "--output", output, *options, *division)
        assert result.returncode == 0, result.stderr
    assert run_cli("shard", "folder", "--output", tmp_path / "whole", *options).returncode == 0
    shutil.rmtree(raw)
    assert run_cli("merge", output).returncode == 0
    named = hash_tree(tmp_path / "whole")
    assert hash_tree(output) == named
    assert read_manifest(output).title == "Cats and dogs"
    write_folder(raw, 9, 4)
    nameless = run_cli("shard", "folder", "--output", tmp_path / "nameless", *options[:4])
    assert nameless.returncode == 0, nameless.stderr
    plain = hash_tree(tmp_path / "nameless")
    assert {name for name in named if named[name] != plain[name]} == {"_info.json"}
    renamed = run_cli("shard", "folder", "--output", output, *options[:4], "--name", "Pets")
    assert "name was Cats and dogs and is Pets" in renamed.stderr


def test_tasks_with_other_settings_are_refused(parts: Path) -> None:
    before = hash_tree(parts)
    result = run_cli(*command(parts, 1, *SYNTHETIC_OPTIONS, "--seed", 1))
    assert result.returncode == 1
    assert f"--output {parts} was begun with other settings: seed was 0 and is 1" in result.stderr
    assert {**before, **hash_tree(parts)} | before == hash_tree(parts)


@pytest.mark.slow
def test_rejected_images_of_all_tasks_count_together(tmp_path: Path) -> None:
    raw, output = write_folder(tmp_path / "raw", 20, 5), tmp_path / "out"
    for number in range(6):
        (raw / f"train/cat/{number:04d}.jpg").write_bytes(b"")
    for task in (0, 1):
        result = run_cli(
            "shard", "folder", "--input", raw, "--output", output, "--samples-per-shard", 5,
            "--max-reject-ratio", 0.1, "--num-tasks", 2, "--task", task,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
    result = run_cli("merge", output, "--max-reject-ratio", 0.1)
    assert result.returncode == 1
    assert "6 of 50 images so far cannot be used" in result.stderr
    assert run_cli("merge", output, "--max-reject-ratio", 0.12).returncode == 0
    assert read_manifest(output).rejected == {"empty": 6}


@pytest.mark.slow
def test_only_one_process_a_task_and_one_division_at_a_time(parts: Path) -> None:
    work = parts / ".conversion"
    with (work / "lock").open("a") as whole, (work / "task-2-of-3.lock").open("a") as task:
        fcntl.flock(whole, fcntl.LOCK_SH)
        fcntl.flock(task, fcntl.LOCK_EX)
        same = run_cli(*command(parts, 2, *SYNTHETIC_OPTIONS))
        assert f"task 2 of 3 is at work on {parts} already" in same.stderr
        other = run_cli(*command(parts, 1, *SYNTHETIC_OPTIONS, num_tasks=4))
        assert f"task 2 of 3 is at work on {parts}: wait until it ends, or" in other.stderr
        undivided = run_cli("shard", "synthetic", "--output", parts, *SYNTHETIC_OPTIONS)
        early = run_cli("merge", parts)
        for result in (undivided, early):
            assert f"another conversion is writing to {parts}: wait until" in result.stderr
        assert {result.returncode for result in (same, other, undivided, early)} == {1}
        beside = run_cli(*command(parts, 1, *SYNTHETIC_OPTIONS))
        assert beside.returncode == 0, beside.stderr


@pytest.mark.slow
def test_task_leaves_what_others_are_writing_alone(parts: Path) -> None:
    own, others = parts / ".tmp-train-000001.tar-abcd_efg", parts / ".tmp-train-000000.tar-hijklmno"
    for path in (own, others):
        path.write_bytes(b"half a shard")
    assert run_cli(*command(parts, 1, *SYNTHETIC_OPTIONS)).returncode == 0
    assert not own.exists()
    assert others.exists()
    assert run_cli("merge", parts).returncode == 0
    assert not others.exists()


def test_leftovers_are_reported_by_the_name_they_were_to_get(tmp_path: Path) -> None:
    for name in (".tmp-a.tar-12345678", ".tmp-b.tar-12345678", ".tmp-a.tar.npz-1", "a.tar"):
        (tmp_path / name).write_bytes(b"")
    remove_leftovers(tmp_path, {"a.tar"})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".tmp-a.tar.npz-1",
        ".tmp-b.tar-12345678",
        "a.tar",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--task", 1), "--num-tasks N and --task I go together"),
        (("--num-tasks", 2), "--num-tasks N and --task I go together"),
        (("--num-tasks", 2, "--task", 2), "--task 2 is not below --num-tasks 2"),
    ],
)
def test_tasks_that_make_no_sense(
    tmp_path: Path, options: tuple[object, ...], message: str
) -> None:
    result = run_cli("shard", "synthetic", "--output", tmp_path / "out", *options)
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: {message}")
    assert not (tmp_path / "out").exists()


def test_merge_of_nothing(tmp_path: Path) -> None:
    result = run_cli("merge", tmp_path / "none")
    assert result.returncode == 1
    assert "none holds no unfinished conversion: run 'python -m data_prep shard'" in (result.stderr)
    assert not (tmp_path / "none").exists()
