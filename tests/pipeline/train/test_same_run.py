"""What a run directory says of its run, and whom it lets in."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.data import DataConfig
from pipeline.config.optim import ScheduleConfig
from pipeline.config.recipes import cifar10, cifar10_blog
from pipeline.config.schema import Config
from pipeline.run import checkpoint
from pipeline.run.directory import RunDirectory
from pipeline.run.settings import Settings, read_settings
from pipeline.train import provenance
from pipeline.train.provenance import versions, write_settings
from pipeline.train.same_run import check_same_run
from tests.pipeline.worlds import world_of_equals

SETTINGS = Settings(recipe="cifar10", config=cifar10(), manifest_sha256="0123456789abcdef")


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path)


@pytest.fixture
def written(run: RunDirectory) -> RunDirectory:
    write_settings(run, SETTINGS, world_of_equals(2))
    return run


def test_what_is_written_is_read(written: RunDirectory) -> None:
    assert read_settings(written) == SETTINGS
    content = json.loads(written.config.read_bytes())
    assert content["versions"] == versions()
    assert set(content["versions"]) == {"alexnet-2012", "python", "torch", "cuda", "numpy"}
    assert " cores of " in content["hardware"]
    assert set(content) == {
        *("format_version", "recipe", "config", "manifest_sha256", "forked_from"),
        *("initialized_from", "versions", "git_revision", "hardware"),
    }
    assert [path.name for path in written.path.iterdir()] == ["config.json"]


def test_what_is_there_already_is_not_written_again(
    written: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run goes on, though the disk is full."""

    def fail(path: Path, _content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(provenance, "write_atomically", fail)
    write_settings(written, SETTINGS, world_of_equals(2))
    with pytest.raises(OSError, match="No space left"):
        write_settings(written, changed(log_every_steps=7), world_of_equals(2))


def check_same(run: RunDirectory, settings: Settings, fork_from: str | None = None) -> None:
    check_same_run(run, settings, num_samples=1000, fork_from=fork_from)


@pytest.fixture
def begun(written: RunDirectory) -> RunDirectory:
    checkpoint.path_of(written.checkpoints, 1).mkdir(parents=True)
    return written


def changed(**fields: Any) -> Settings:
    return dataclasses.replace(SETTINGS, config=dataclasses.replace(SETTINGS.config, **fields))


def test_a_run_is_continued_by_the_same_run_only(begun: RunDirectory) -> None:
    check_same(begun, SETTINGS)
    with pytest.raises(ValueError, match=r"epochs: was 10, is 11; seed: was 0, is 1") as error:
        check_same(begun, changed(epochs=11, seed=1))
    assert str(begun.path) in str(error.value)


def test_of_another_recipe_only_the_name_is_said(begun: RunDirectory) -> None:
    other = dataclasses.replace(SETTINGS, recipe="cifar10_blog", config=cifar10_blog())
    with pytest.raises(ValueError, match="belongs") as error:
        check_same(begun, other)
    assert str(error.value) == (
        f"{begun.path} belongs to a run of the recipe cifar10, and this one is cifar10_blog: use "
        "another --run-dir, or cifar10 with the same options as before"
    )


def test_a_run_may_become_longer_where_what_it_has_done_stays_as_it_is(begun: RunDirectory) -> None:
    """One step of 3 an epoch is done, at a rate that rises over a fifth of the run."""
    with pytest.raises(ValueError, match="belongs to a run of 10 epochs") as error:
        check_same(begun, changed(epochs=20.0))
    assert str(error.value) == (
        f"{begun.path} belongs to a run of 10 epochs, which cannot become one of 20: the learning "
        "rates depend on the length of the run, and step 1, which is done, had another one; start "
        f"a new run from its weights with --fork-from {begun.path} and another --run-dir"
    )
    schedule = ScheduleConfig(name="step", step_epochs=(5.0,))
    write_settings(begun, changed(schedule=schedule), world_of_equals(2))
    check_same(begun, changed(schedule=schedule, epochs=20.0))


def test_a_fork_belongs_to_a_new_run(begun: RunDirectory) -> None:
    with pytest.raises(ValueError, match=r"began with fresh weights, and --fork-from is /a@best: "):
        check_same(begun, SETTINGS, "/a@best")
    forked = dataclasses.replace(SETTINGS, forked_from={"source": "/a@best", "checkpoint": "/a/c"})
    write_settings(begun, forked, world_of_equals(2))
    check_same(begun, SETTINGS, "/a@best")
    check_same(begun, SETTINGS)
    with pytest.raises(ValueError, match=r"began at /a@best, and --fork-from is /a@newest: give"):
        check_same(begun, SETTINGS, "/a@newest")


def test_a_run_without_a_checkpoint_may_become_another(written: RunDirectory) -> None:
    check_same(written, changed(epochs=11, seed=1))


def test_how_a_run_is_carried_out_may_change(begun: RunDirectory) -> None:
    data = DataConfig(shards="/moved", decode_threads=3, prefetch_batches=9)
    check_same(begun, changed(data=data, log_every_steps=7))


def test_another_shard_set_is_refused(begun: RunDirectory) -> None:
    other = dataclasses.replace(
        changed(data=DataConfig(shards="/other")), manifest_sha256="fedcba9876543210"
    )
    with pytest.raises(ValueError, match=r"01234567…, that of /other has fedcba98…; use another"):
        check_same(begun, other)


def test_an_empty_directory_belongs_to_nobody(run: RunDirectory) -> None:
    check_same(run, SETTINGS)
    with pytest.raises(ValueError, match=r"not a run directory: it has no config\.json"):
        read_settings(run)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b'{"recipe": "cif', b"[]", b"{}", b"3", b'{"recipe": "a", "config": {}}'),
        b'{"recipe": 1, "config": {}, "manifest_sha256": "x"}',
        b'{"recipe": "a", "config": 5, "manifest_sha256": "x"}',
        b'{"recipe": "a", "config": {}, "manifest_sha256": 3}',
    ],
)
def test_a_damaged_config_is_named(run: RunDirectory, content: bytes) -> None:
    run.config.write_bytes(content)
    for read in (read_settings, lambda run: check_same(run, SETTINGS)):
        with pytest.raises(ValueError, match=r"config\.json is damaged .*restore it from a copy"):
            read(run)


def test_a_config_of_another_version_is_named(written: RunDirectory) -> None:
    content = json.loads(written.config.read_bytes())
    content["config"]["optim"]["lookahead"] = 3
    written.config.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"another version: optim\.lookahead"):
        read_settings(written)


def test_outside_of_a_checkout_there_is_no_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_git(*_: object, **__: object) -> Mapping[str, str]:
        raise FileNotFoundError("git")

    monkeypatch.setattr("pipeline.train.provenance.subprocess.run", no_git)
    assert provenance.git_revision() is None


def git(directory: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", "-C", directory, *identity, *arguments], check=True, capture_output=True)


def test_the_revision_is_that_of_this_checkout_and_of_no_other_around_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as that of a project with this package in a virtual environment inside."""
    for folder in (tmp_path, tmp_path / "site-packages"):
        source = folder / "pipeline" / "train" / "provenance.py"
        source.parent.mkdir(parents=True)
        source.touch()
    git(tmp_path, "init")
    (tmp_path / "pyproject.toml").touch()
    git(tmp_path, "add", "pyproject.toml", "pipeline")
    git(tmp_path, "commit", "--message", "a")
    for folder, expected in ((tmp_path, True), (tmp_path / "site-packages", False)):
        monkeypatch.setattr(provenance, "__file__", str(folder / "pipeline/train/provenance.py"))
        assert (provenance.git_revision() is not None) is expected


def test_a_revision_is_text_whatever_a_checkout_or_tag_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    checkout = tmp_path / "-x$(touch HACKED)\nb\udcff"
    source = checkout / "pipeline" / "train" / "provenance.py"
    source.parent.mkdir(parents=True)
    source.touch()
    git(checkout, "init", "--initial-branch", "`touch\u00a0HACKED`")
    git(checkout, "add", ".")
    git(checkout, "commit", "--message", "a")
    git(checkout, "tag", "--annotate", "--message", "b", "v1$(id)`<b>\u202e\udcff")
    monkeypatch.setattr(provenance, "__file__", str(source))
    assert provenance.git_revision() == "v1$(id)`<b>\u202e\ufffd"
    assert [*tmp_path.iterdir()] == [checkout]


def test_configs_of_all_recipes_survive_json(run: RunDirectory) -> None:
    plain = dataclasses.replace(SETTINGS, config=Config(), recipe="plain")
    write_settings(run, plain, world_of_equals(1))
    assert read_settings(run) == plain
