"""Saving that a kill or a full disk cannot spoil, and loading that trusts nothing."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import multiprocessing
import os
import random
import shutil
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from data_prep.shard_set.files import sha256_of
from pipeline.run import checkpoint
from pipeline.run.checkpoint import BEST, CheckpointError
from tests.machine import DEADLINE_SECONDS, small_disk

NUM_KILLS = 40


def state_of(step: int, num_values: int = 1000) -> dict[str, Any]:
    """A state in which every value says which step it is of."""
    return {
        "model": {"weight": torch.full((num_values,), float(step))},
        "progress": {"step": step, "losses": [0.5, step / 3], "best_top1": None},
        "settings": "{}",
    }


def assert_is_state_of(state: dict[str, Any], step: int) -> None:
    expected = state_of(step, len(state["model"]["weight"]))
    assert torch.equal(state["model"]["weight"], expected["model"]["weight"])
    assert state["progress"] == expected["progress"]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


@pytest.fixture
def three(directory: Path) -> list[Path]:
    """Checkpoints of the steps 30, 20 and 10."""
    for step in (10, 20, 30):
        checkpoint.save(directory, step, state_of(step))
    return checkpoint.paths(directory)


def damage(path: Path, kind: str) -> None:
    state, facts = path / "state.pt", path / "checkpoint.json"
    content = bytearray(state.read_bytes())
    match kind:
        case "truncated":
            state.write_bytes(content[:-1])
        case "bit flip":
            content[len(content) // 2] ^= 1
            state.write_bytes(content)
        case "no state":
            state.unlink()
        case "no json":
            facts.unlink()
        case "half a json":
            facts.write_bytes(facts.read_bytes()[:20])
        case "another json":
            facts.write_text("[]")
        case "empty":
            shutil.rmtree(path)
            path.mkdir()


DAMAGES = (
    "truncated",
    "bit flip",
    "no state",
    "no json",
    "half a json",
    "another json",
    "empty",
)


def test_what_is_saved_is_loaded(directory: Path) -> None:
    path, num_bytes = checkpoint.save(directory, 7, state_of(7))
    assert path == directory / "step-00000007"
    assert num_bytes == (path / "state.pt").stat().st_size
    assert_is_state_of(checkpoint.load(path), 7)
    facts = json.loads((path / "checkpoint.json").read_bytes())
    assert facts == {
        "format_version": checkpoint.FORMAT_VERSION,
        "step": 7,
        "num_bytes": num_bytes,
        "sha256": sha256_of(path / "state.pt"),
    }
    assert [entry.name for entry in directory.iterdir()] == ["step-00000007"]


def test_steps_are_in_the_order_of_numbers(directory: Path) -> None:
    for step in (9, 100_000_000, 20, 99_999_999):
        checkpoint.save(directory, step, state_of(step))
    found = [checkpoint.step_of(path) for path in checkpoint.paths(directory)]
    assert found == [100_000_000, 99_999_999, 20, 9]


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_newest_one_is_passed_over_loudly(
    directory: Path, three: list[Path], kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    damage(three[0], kind)
    assert checkpoint.newest_good(directory) == three[1]
    (warning,) = caplog.records
    assert warning.levelno == logging.WARNING
    assert str(three[0]) in warning.getMessage()
    with pytest.raises(CheckpointError, match="step-00000030"):
        checkpoint.load(three[0])


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_one_is_saved_over(directory: Path, three: list[Path], kind: str) -> None:
    damage(three[0], kind)
    checkpoint.save(directory, 30, state_of(30))
    assert_is_state_of(checkpoint.load(three[0]), 30)
    assert checkpoint.paths(directory) == three


def test_all_damaged_is_an_error_and_none_is_not(directory: Path) -> None:
    assert checkpoint.newest_good(directory) is None
    for step in (10, 20):
        path, _ = checkpoint.save(directory, step, state_of(step))
        damage(path, "bit flip")
    with pytest.raises(CheckpointError, match=r"every checkpoint in .*00020 .*00010 .*--run-dir"):
        checkpoint.newest_good(directory)


def test_another_format_version_is_named(directory: Path) -> None:
    path, _ = checkpoint.save(directory, 1, state_of(1))
    facts = json.loads((path / "checkpoint.json").read_bytes())
    (path / "checkpoint.json").write_text(json.dumps(facts | {"format_version": 99}))
    with pytest.raises(CheckpointError, match="format version 99; expected 1"):
        checkpoint.load(path)


class Intruder:
    """Unpickled by a loader that trusts its file, it makes a file of its own."""

    def __init__(self, target: Path) -> None:
        self._target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._target,)


def test_a_state_runs_no_code(directory: Path, tmp_path: Path) -> None:
    """Not even one whose hash is right."""
    path, _ = checkpoint.save(directory, 1, state_of(1))
    target = tmp_path / "owned"
    torch.save({"model": Intruder(target)}, path / "state.pt")
    facts = json.loads((path / "checkpoint.json").read_bytes())
    facts["num_bytes"] = (path / "state.pt").stat().st_size
    facts["sha256"] = sha256_of(path / "state.pt")
    (path / "checkpoint.json").write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match="nothing in it was executed"):
        checkpoint.load(path)
    assert not target.exists()


def test_what_could_not_be_loaded_is_not_saved(directory: Path, three: list[Path]) -> None:
    with pytest.raises(CheckpointError, match="tensors and plain values alone"):
        checkpoint.save(directory, 40, {"model": Path("/")})
    assert sorted(directory.iterdir()) == sorted(three)


def test_pruning_keeps_the_newest_and_the_best(directory: Path) -> None:
    for step in (10, 20, 30, 40, 50):
        checkpoint.save(directory, step, state_of(step))
        if step == 20:
            assert checkpoint.mark_best(directory, step)
        checkpoint.prune(directory, keep=2)
    assert [checkpoint.step_of(path) for path in checkpoint.paths(directory)] == [50, 40, 20]
    assert (directory / BEST).resolve().name == "step-00000020"
    assert not checkpoint.mark_best(directory, 30)
    (directory / BEST).rename(directory / "aside")
    (directory / BEST).mkdir()  # as in a copy that followed links
    with pytest.raises(FileExistsError, match="a folder is where the link to the best"):
        checkpoint.mark_best(directory, 50)
    (directory / BEST).rmdir()
    (directory / "aside").rename(directory / BEST)
    assert (directory / BEST).resolve().name == "step-00000020"
    assert checkpoint.mark_best(directory, 50)
    checkpoint.prune(directory, keep=1)
    assert [checkpoint.step_of(path) for path in checkpoint.paths(directory)] == [50]
    assert sorted(path.name for path in directory.iterdir()) == [BEST, "step-00000050"]


def test_without_links_a_file_names_the_best(
    directory: Path, three: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(Path, "symlink_to", fail)
    assert checkpoint.mark_best(directory, 10)
    assert not (directory / BEST).is_symlink()
    assert checkpoint.named(directory, BEST) == three[2]
    (directory / BEST).write_text(f"{three[2].name}\n")  # as an editor leaves it
    assert checkpoint.named(directory, BEST) == three[2]
    checkpoint.prune(directory, keep=1)
    assert sorted(path.name for path in directory.iterdir()) == [
        BEST,
        "step-00000010",
        "step-00000030",
    ]


@pytest.mark.parametrize("content", [b"", b"..", b"step-10", b"\xff"])
def test_a_file_that_names_no_checkpoint_is_no_best(
    directory: Path, three: list[Path], content: bytes
) -> None:
    (directory / BEST).write_bytes(content)
    with pytest.raises(CheckpointError, match="no checkpoint 'best': expected newest"):
        checkpoint.named(directory, BEST)
    checkpoint.prune(directory, keep=2)
    assert checkpoint.paths(directory) == three[:2]


def test_all_that_a_kill_leaves_unfinished_is_deleted(directory: Path, three: list[Path]) -> None:
    """Folders of checkpoints, the file that names the best, and the link to it."""
    (directory / ".tmp-step-00000040").mkdir()
    (directory / ".tmp-step-00000040" / "state.pt").touch()
    (directory / ".tmp-best-0a1b2c3d").touch()
    (directory / ".tmp-best").symlink_to(three[0].name)
    checkpoint.remove_leftovers(directory)
    assert sorted(directory.iterdir()) == sorted(three)
    assert_is_state_of(checkpoint.load(three[0]), 30)


def test_a_kill_while_a_step_is_saved_again_leaves_it_there(
    directory: Path, three: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ranks do that outlive the one which has saved it: two renames, and a kill between them."""
    left, rename = directory.with_name("left"), Path.rename

    def rename_and_look(source: Path, target: Path) -> Path:
        renamed = rename(source, target)
        if source == three[0]:
            shutil.copytree(directory, left)
        return renamed

    monkeypatch.setattr(Path, "rename", rename_and_look)
    checkpoint.save(directory, 30, state_of(30))
    checkpoint.remove_leftovers(left)
    assert [path.name for path in checkpoint.paths(left)] == [path.name for path in three]
    assert len(list(left.iterdir())) == len(three)
    assert_is_state_of(checkpoint.load(left / three[0].name), 30)


def test_damaged_ones_that_a_run_goes_on_without_are_no_spares(
    directory: Path, three: list[Path]
) -> None:
    (directory / "damaged-step-00000030").mkdir()
    damage(three[0], "bit flip")
    checkpoint.set_aside_later(directory, 20)
    checkpoint.save(directory, 25, state_of(25))
    checkpoint.prune(directory, keep=2)
    assert [checkpoint.step_of(path) for path in checkpoint.paths(directory)] == [25, 20]
    assert (directory / "damaged-step-00000030/state.pt").exists()


def test_a_checkpoint_is_found_by_every_name(directory: Path, three: list[Path]) -> None:
    checkpoint.mark_best(directory, 10)
    assert checkpoint.named(directory, "newest") == three[0]
    assert checkpoint.named(directory, "best") == three[2]
    assert checkpoint.named(directory, "20") == three[1]
    copy = Path(shutil.copytree(three[1], directory.parent / "a copy"))
    assert checkpoint.named(directory, str(copy)) == copy
    checkpoint.verify(copy)
    with pytest.raises(CheckpointError, match=r"no checkpoint '21'.*30, 20, 10"):
        checkpoint.named(directory, "21")


def test_a_run_without_checkpoints_has_none_to_name(directory: Path) -> None:
    directory.mkdir()
    with pytest.raises(CheckpointError, match="train first"):
        checkpoint.named(directory, "newest")
    with pytest.raises(CheckpointError, match="no checkpoint 'best'"):
        checkpoint.named(directory, "best")


def save_forever(directory: Path, first_step: int, acknowledge: Connection) -> None:
    """As a run does: save, mark, prune; say after each how far the disk has it."""
    for step in range(first_step, first_step + 1_000_000):
        checkpoint.save(directory, step, state_of(step, 20_000))
        if step % 3 == 0:
            checkpoint.mark_best(directory, step)
        checkpoint.prune(directory, keep=2)
        acknowledge.send(step)


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_a_good_one(directory: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    moments = random.Random(0)
    directory.mkdir()
    last, was_marked = 0, False
    for _ in range(NUM_KILLS):
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=save_forever, args=(directory, last + 1, sender))
        child.start()
        sender.close()
        assert receiver.poll(DEADLINE_SECONDS)
        time.sleep(moments.uniform(0, 0.02))
        child.kill()
        child.join()
        with contextlib.suppress(EOFError):
            while True:
                last = receiver.recv()
        path = checkpoint.newest_good(directory)
        assert path is not None
        assert checkpoint.paths(directory)[0] == path, "under its name it is whole"
        assert checkpoint.step_of(path) >= last
        last = checkpoint.step_of(path)
        assert_is_state_of(checkpoint.load(path), last)
        was_marked |= (directory / BEST).is_symlink()
        if was_marked:  # from then on there always is one; a kill may come before the first mark
            best = checkpoint.named(directory, BEST)
            assert_is_state_of(checkpoint.load(best), checkpoint.step_of(best))
        checkpoint.remove_leftovers(directory)
        checkpoint.prune(directory, keep=2)  # a child that is killed early prunes nothing
        assert len(list(directory.iterdir())) <= 4, "the newest two, the best and its link"
    assert was_marked


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "1m"):
        yield tmp_path / "disk"


def test_a_full_disk_leaves_the_old_ones(disk: Path) -> None:
    directory = disk / "checkpoints"
    kept = [checkpoint.save(directory, step, state_of(step))[0] for step in (20, 10)]
    for num_values in (260_000, 300_000, 1_000_000):
        with pytest.raises(OSError, match=r"No space|state\.pt could not be written"):
            checkpoint.save(directory, 30, state_of(30, num_values))
        assert sorted(directory.iterdir(), reverse=True) == checkpoint.paths(directory) == kept
    assert_is_state_of(checkpoint.load(kept[0]), 20)
    filler = disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb") as file:
        file.write(bytes(2 << 20))
    needs = rf"No space left on device: it needs 0\.0 MB, and {directory} has 0\.0 MB free"
    with pytest.raises(OSError, match=needs):
        checkpoint.save(directory, 20, state_of(20))
    assert_is_state_of(checkpoint.load(kept[0]), 20)
    filler.unlink()
    checkpoint.save(directory, 30, state_of(30))
    assert_is_state_of(checkpoint.load(directory / "step-00000030"), 30)
