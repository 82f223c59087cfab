"""The cache of a remote shard set: whole files or none, within its limit, among processes."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

from data_prep.shard_set.files import sha256_of
from data_prep.shard_set.index import read_index, read_mean_image
from data_prep.shard_set.manifest import (
    ADOPTED,
    MANIFEST_NAME,
    ShardSetError,
    manifest_sha256,
    read_manifest,
    write_manifest,
)
from pipeline.data.cache import cache_directory, remote, remote_shards, shard_cache
from pipeline.data.cache.cache_directory import CacheFullError, publish
from pipeline.data.cache.remote import FetchError
from pipeline.data.cache.remote_shards import RemoteShards
from pipeline.data.cache.shard_cache import ShardCache, ShardSet, cached_path
from pipeline.data.order.shard_needs import ShardNeed
from tests.machine import DEADLINE_SECONDS, wait_until
from tests.pipeline.data.cache.cache_process import content_of, make_config
from tests.pipeline.data.cache.flaky_server import Fault, FlakyServer, serving
from tests.pipeline.data.cache.silence import let_only_silence_last
from tests.pipeline.fake_run import make_images, write_shard_set

NUM_SHARDS = 6
LABELS = np.arange(NUM_SHARDS * 20) % 10
NAMES = [f"val-{number:06d}.tar" for number in range(NUM_SHARDS)]
SMALL_FILES = [MANIFEST_NAME, "val.index.npy", "val.crc32.npy", "val.mean.npy"]


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(remote_shards, "_AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(remote_shards, "_LOOK_SECONDS", 0.01)
    # A thread may stand still with a lock that it holds for a glance.
    monkeypatch.setattr(cache_directory, "_GLANCE_SECONDS", DEADLINE_SECONDS)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A shard set with all that a manifest can name; its shards are of one size."""
    path = tmp_path / "origin"
    names = [f"class-{label}" for label in range(10)]
    write_shard_set(path, make_images(LABELS), LABELS, names, shard_length=20)
    np.save(path / "val.crc32.npy", np.zeros(len(LABELS), np.uint32))
    np.save(path / "val.mean.npy", np.full((16, 16, 3), 7, np.float32))
    amend(path, checksums_filename="val.crc32.npy")
    return path


def amend(folder: Path, **changes: object) -> None:
    """Write the manifest anew, with the hashes of the files there are."""
    manifest = read_manifest(folder)
    split = dataclasses.replace(
        manifest.splits["val"],
        index_sha256=sha256_of(folder / "val.index.npy"),
        checksums_sha256=sha256_of(folder / "val.crc32.npy"),
        **changes,  # type: ignore[arg-type]
    )
    statistics = dataclasses.replace(
        manifest.statistics,
        mean_image_filename="val.mean.npy",
        mean_image_sha256=sha256_of(folder / "val.mean.npy"),
    )
    changed = dataclasses.replace(manifest, splits={"val": split}, statistics=statistics)
    write_manifest(folder, changed)


@pytest.fixture
def server(folder: Path) -> Iterator[FlakyServer]:
    with serving(folder) as running:
        yield running


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def shard_bytes(folder: Path) -> int:
    (size,) = set(read_manifest(folder).splits["val"].shard_bytes)
    return size


class Job:
    """What a job holds of a cache: shards that it has got are in use until it releases them."""

    def __init__(self, cache: ShardCache) -> None:
        self.cache = cache
        self._stop = threading.Event()
        self._in_use: dict[int, int] = {}
        self.stage_manifest()

    def stage_manifest(self) -> Path:
        self.folder = self.cache.stage_manifest()
        self.split = read_manifest(self.folder).split("val")
        return self.folder

    def get(self, number: int) -> Path:
        if number not in self._in_use:
            path, content = self.folder / NAMES[number], content_of(self.split, number)
            self._in_use[number] = self.cache.open_file(path, content, self._stop)
        return self.folder / NAMES[number]

    def file(self, number: int) -> int:
        self.get(number)
        return self._in_use[number]

    def release(self, number: int) -> None:
        os.close(self._in_use.pop(number))

    @contextlib.contextmanager
    def hurried(self) -> Iterator[None]:
        """Wait for room only a moment, in which a busy machine fetches nothing."""
        patient = self.cache
        config = dataclasses.replace(patient.config, fetch_timeout_seconds=0.1)
        self.cache = dataclasses.replace(patient, config=config)
        try:
            yield
        finally:
            self.cache = patient

    @contextlib.contextmanager
    def ahead(self, *numbers: int) -> Iterator[RemoteShards]:
        """Shards that are expected in this order."""
        needs = [ShardNeed(number, place, place) for place, number in enumerate(numbers)]
        with contextlib.closing(RemoteShards(self.cache, self.folder, self.split)) as shards:
            shards.expect(needs)
            yield shards

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for number in list(self._in_use):
            self.release(number)


def open_cache(server: FlakyServer, directory: Path, max_bytes: int | None = None) -> Job:
    limits = {"fetch_timeout_seconds": DEADLINE_SECONDS, "fetch_attempts": 3}
    return Job(ShardCache(make_config(server.url, directory, max_bytes, **limits)))


def cached(directory: Path) -> list[int]:
    """The numbers of the shards that are whole in the cache."""
    return sorted(NAMES.index(path.name) for path in directory.glob("*/val-*.tar"))


def used_bytes(directory: Path) -> int:
    """What shards take, those that are being staged too, at a time when no room is being made."""
    with (directory / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return count_bytes(directory)


def count_bytes(directory: Path) -> int:
    total = 0
    for path in [*directory.glob("*/val-*.tar"), *directory.glob("*/.tmp-*")]:
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total


def is_same(path: Path, folder: Path) -> bool:
    return path.read_bytes() == (folder / path.name).read_bytes()


def assert_staged(staged: Path, folder: Path) -> None:
    """The small files are there, each with the content it has in `folder`."""
    assert {path.name for path in staged.iterdir()} == set(SMALL_FILES)
    assert all(is_same(staged / name, folder) for name in SMALL_FILES)


def num_open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def in_thread(action: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """Run `action`; what it returns or raises is the item of the list."""
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(action())
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, outcome


def start_job(
    server: FlakyServer, directory: Path, max_bytes: int, numbers: list[int], *prefix: str
) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.pipeline.data.cache.cache_process", server.url]
    command += [str(directory), str(max_bytes), ",".join(map(str, numbers))]
    return subprocess.Popen([*prefix, *command], stdout=subprocess.PIPE, text=True)


def finish(job: subprocess.Popen[str], numbers: list[int]) -> None:
    """Wait for a job that succeeds."""
    output, _ = job.communicate(timeout=DEADLINE_SECONDS)
    assert job.returncode == 0
    assert output.splitlines() == ["ready", *map(str, numbers)]


# The manifest and the small files


def test_a_staged_set_is_read_as_a_local_one(
    server: FlakyServer, folder: Path, directory: Path
) -> None:
    cache = open_cache(server, directory)
    staged = cache.stage_manifest()
    assert staged == directory / manifest_sha256(folder)
    manifest = read_manifest(staged)
    assert manifest == read_manifest(folder)
    split = manifest.split("val")
    assert np.array_equal(read_index(staged, split), read_index(folder, split))
    assert np.all(read_mean_image(staged, manifest.statistics) == 7)
    assert_staged(staged, folder)
    cache.stage_manifest()
    assert server.requests == {MANIFEST_NAME: 3} | dict.fromkeys(SMALL_FILES[1:], 1)


def test_adopted_shards_may_lie_in_folders(
    server: FlakyServer, folder: Path, directory: Path
) -> None:
    names = (".a/x y.tar", "b/x y.tar", *NAMES[2:])
    for old, new in zip(NAMES, names, strict=True):
        (folder / new).parent.mkdir(exist_ok=True)
        (folder / old).rename(folder / new)
    write_manifest(folder, dataclasses.replace(read_manifest(folder), source=ADOPTED))
    amend(folder, filenames=names)
    with open_cache(server, directory) as cache:
        for number, name in enumerate(names):
            path, content = cached_path(cache.folder, name), content_of(cache.split, number)
            os.close(cache.cache.open_file(path, content, threading.Event()))
            assert path.parent == cache.folder
            assert path.read_bytes() == (folder / name).read_bytes()
            assert not path.name.startswith(".")


def test_adopted_shards_that_lie_elsewhere_are_refused(
    server: FlakyServer, folder: Path, directory: Path
) -> None:
    manifest = read_manifest(folder)
    split = dataclasses.replace(manifest.split("val"), folder="/elsewhere")
    write_manifest(folder, dataclasses.replace(manifest, splits={"val": split}))
    with pytest.raises(ShardSetError, match=r"in /elsewhere .* adopt them again with --in-place"):
        open_cache(server, directory)


def test_a_config_makes_the_cache(server: FlakyServer, folder: Path, directory: Path) -> None:
    opened = ShardSet.opened(make_config(server.url, directory, 10**6))
    assert opened.manifest == read_manifest(opened.folder) == read_manifest(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "fault"),
    [
        *((MANIFEST_NAME, fault) for fault in ("drop", "503", "short")),  # no hash of it is known
        *(("val.index.npy", fault) for fault in ("drop", "503", "short", "flip", "long")),
    ],
)
def test_faults_of_small_files_are_mended(
    server: FlakyServer, folder: Path, directory: Path, name: str, fault: Fault
) -> None:
    server.faults[name] = [fault]
    with open_cache(server, directory) as cache:
        assert_staged(cache.folder, folder)
    assert server.requests[name] == 2


def test_a_half_staged_set_is_never_seen(
    server: FlakyServer, folder: Path, directory: Path
) -> None:
    server.faults["val.mean.npy"] = ["404"] * 3
    with pytest.raises(FetchError, match=r"val\.mean\.npy could not be fetched in 3 attempts"):
        open_cache(server, directory)
    (staged,) = (path for path in directory.iterdir() if path.is_dir())
    with pytest.raises(ShardSetError, match=r"it has no _info\.json"):
        read_manifest(staged)
    with open_cache(server, directory) as cache:
        assert read_manifest(cache.stage_manifest()) == read_manifest(folder)


def test_what_is_no_manifest_is_reported(
    server: FlakyServer, folder: Path, directory: Path
) -> None:
    (folder / MANIFEST_NAME).write_text("<html>please sign in</html>")
    with pytest.raises(FetchError, match=r"_info\.json is damaged \(Expecting value"):
        open_cache(server, directory)
    assert server.requests[MANIFEST_NAME] == 3
    assert not any(path.is_dir() for path in directory.iterdir())


def test_a_manifest_without_an_end_is_given_up(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_cache, "_MOST_JSON_BYTES", 1 << 20)
    cache = ShardCache(make_config("pipe:: {}; cat /dev/zero", directory))
    with pytest.raises(FetchError, match=r"has more than 1,048,576 bytes; expected a manifest; "):
        cache.stage_manifest()


@pytest.mark.parametrize(
    "name", ["../evil.tar", "/etc/evil.tar", ".lock-val-000000.tar", "", NAMES[1], "_info.json"]
)
def test_names_that_lead_elsewhere_are_refused(
    server: FlakyServer, folder: Path, directory: Path, name: str
) -> None:
    amend(folder, filenames=(name, *NAMES[1:]))
    sentence = f"names the file '{name}'; expected one of its own"
    with pytest.raises(ShardSetError, match=sentence):
        open_cache(server, directory)
    assert server.requests == {MANIFEST_NAME: 1}
    with pytest.raises(ShardSetError, match=sentence):
        read_manifest(folder)


OF_OTHERS = {
    "timm": ({"splits": {"val": {"filenames": NAMES[:1]}}}, "WebDataset tars as timm writes it"),
    "newer": ({"format_version": 99}, "has format version 99; expected 1"),
    "other": ([1, 2], r"it is of another program; make one with"),
}


@pytest.mark.parametrize("kind", OF_OTHERS)
def test_manifests_of_others_are_reported_at_once(
    server: FlakyServer, folder: Path, directory: Path, kind: str
) -> None:
    fields, sentence = OF_OTHERS[kind]
    (folder / MANIFEST_NAME).write_text(json.dumps(fields))
    with pytest.raises(ShardSetError, match=sentence):
        open_cache(server, directory)
    assert server.requests == {MANIFEST_NAME: 1}


@pytest.mark.parametrize(
    ("index", "sentence"),
    [
        ({"chunks": [], "config": {}}, "index.json is the index of a LitData set"),
        ({"version": 2, "shards": []}, r"index.json is the index of a MosaicML Streaming \(MDS\)"),
        (None, r"a shard set has a _info\.json: tars without one cannot be used here"),
    ],
)
def test_a_set_of_others_at_a_url_is_reported_at_once(
    server: FlakyServer, folder: Path, directory: Path, index: object, sentence: str
) -> None:
    (folder / MANIFEST_NAME).unlink()
    if index is not None:
        (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(FetchError, match=rf"in 1 attempt: curl.* 404 .*; .*{sentence}"):
        open_cache(server, directory)
    assert server.requests == {MANIFEST_NAME: 1, "index.json": 1}


def test_a_set_that_changed_is_another_folder(
    server: FlakyServer, folder: Path, directory: Path
) -> None:
    with open_cache(server, directory) as cache:
        old = cache.stage_manifest()
        shard = cache.get(0)
        before = read_manifest(folder)
        index = np.load(folder / "val.index.npy")
        index["label"] = 3
        np.save(folder / "val.index.npy", index)
        amend(folder)
        new = cache.stage_manifest()
        assert new != old
        assert read_manifest(old) == before
        assert not np.all(read_index(old, before.split("val"))["label"] == 3)
        assert np.all(read_index(new, read_manifest(new).split("val"))["label"] == 3)
        assert cache.get(1).parent == new
        assert shard.parent == old


def test_an_index_damaged_in_the_cache_is_staged_again(
    server: FlakyServer, folder: Path, directory: Path
) -> None:
    with open_cache(server, directory) as cache:
        staged = cache.stage_manifest()
        (staged / "val.index.npy").write_bytes(b"damaged")
        (staged / "val.mean.npy").unlink()
        cache.stage_manifest()
        assert_staged(staged, folder)


# Shards


def test_a_shard_is_fetched_once(server: FlakyServer, folder: Path, directory: Path) -> None:
    with open_cache(server, directory) as cache:
        for _ in range(3):
            path = cache.get(2)
            assert is_same(path, folder)
    with open_cache(server, directory) as another:
        assert another.get(2) == path
    assert server.requests[NAMES[2]] == 1


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["drop", "stall", "503", "short", "long", "flip"])
def test_a_shard_is_whole_after_any_fault(
    server: FlakyServer,
    folder: Path,
    directory: Path,
    fault: Fault,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    let_only_silence_last(monkeypatch, server.has_just_stalled)
    server.faults[NAMES[1]] = [fault]
    with open_cache(server, directory) as cache:
        assert is_same(cache.get(1), folder)
        assert server.requests[NAMES[1]] == 2
    assert not list(directory.glob("*/.tmp-*"))


def test_a_shard_that_cannot_be_fetched_is_not_there(
    server: FlakyServer, folder: Path, directory: Path
) -> None:
    server.faults[NAMES[1]] = ["flip", "drop", "503"]
    with open_cache(server, directory) as cache:
        with pytest.raises(FetchError, match=f"{server.url}/{NAMES[1]} could not be fetched in 3"):
            cache.get(1)
        assert cached(directory) == []
        assert used_bytes(directory) == 0
        assert is_same(cache.get(1), folder)


@pytest.mark.parametrize("content", [b"", b"cut", b"x" * 100_000])
def test_a_file_of_another_size_is_staged_again(
    server: FlakyServer, folder: Path, directory: Path, content: bytes
) -> None:
    with open_cache(server, directory) as cache:
        path = cache.get(0)
        cache.release(0)
        path.write_bytes(content)
        assert is_same(cache.get(0), folder)


def test_the_limit_holds_and_what_was_not_used_for_longest_goes(
    server: FlakyServer, directory: Path, shard_bytes: int
) -> None:
    with open_cache(server, directory, 3 * shard_bytes) as cache:
        left = []
        for number in (0, 1, 2, 0, 3, 4, 0, 5):
            cache.get(number)
            cache.release(number)
            left.append(cached(directory))
            assert used_bytes(directory) <= 3 * shard_bytes
        assert left[3:] == [[0, 1, 2], [0, 2, 3], [0, 3, 4], [0, 3, 4], [0, 4, 5]]


def test_sets_share_the_limit(
    server: FlakyServer, folder: Path, directory: Path, shard_bytes: int, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    np.save(other / "val.mean.npy", np.zeros((16, 16, 3), np.float32))
    amend(other)
    with (
        serving(other) as second,
        open_cache(server, directory, 2 * shard_bytes) as cache,
        open_cache(second, directory, 2 * shard_bytes) as cache_of_other,
    ):
        for number in (0, 1):
            cache.get(number)
            cache.release(number)
        paths = [cache_of_other.get(number) for number in (4, 5)]
        assert all(is_same(path, other) for path in paths)
        assert cached(directory) == [4, 5]


def test_what_is_in_use_stays(
    server: FlakyServer, folder: Path, directory: Path, shard_bytes: int
) -> None:
    """Of this job and of another one; a file that has gone is still good to read for who has it."""
    with (
        open_cache(server, directory, 3 * shard_bytes) as cache,
        open_cache(server, directory, 3 * shard_bytes) as other,
    ):
        cache.get(0)
        other.get(1)
        file = os.dup(other.file(1))
        for number in (2, 3, 4):
            cache.get(number)
            cache.release(number)
            assert cached(directory) == [0, 1, number]
        other.release(1)
        (directory / manifest_sha256(folder) / NAMES[1]).unlink()
        assert os.pread(file, shard_bytes, 0) == (folder / NAMES[1]).read_bytes()
        os.close(file)


def test_a_file_that_gets_its_name_during_the_count_is_counted(
    server: FlakyServer, directory: Path, shard_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is looked for first, and once only."""
    glob = Path.glob
    with open_cache(server, directory, 2 * shard_bytes) as cache:
        server.faults[NAMES[0]] = ["stall"]
        thread, _ = in_thread(lambda: cache.get(0))
        assert server.has_stalled.wait(DEADLINE_SECONDS)

        def glob_and_let_it_end(path: Path, pattern: str) -> list[Path]:
            found = list(glob(path, pattern))
            if path == directory:
                server.goes_on.set()
                thread.join(DEADLINE_SECONDS)
                assert not thread.is_alive()
            return found

        monkeypatch.setattr(Path, "glob", glob_and_let_it_end)
        cache.get(1)
        monkeypatch.undo()
        assert cached(directory) == [0, 1]
        assert used_bytes(directory) == 2 * shard_bytes
    with open_cache(server, directory, 2 * shard_bytes) as cache:
        cache.get(2)
        assert used_bytes(directory) == 2 * shard_bytes


def test_a_shard_is_in_use_once_it_has_its_name(
    server: FlakyServer, directory: Path, shard_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or it could be evicted before who has staged it opens it."""
    outcome: list[object] = []
    with (
        open_cache(server, directory, shard_bytes) as cache,
        open_cache(server, directory, shard_bytes) as other,
        other.hurried(),
    ):

        def publish_and_be_robbed(staged: BinaryIO, path: Path) -> int:
            monkeypatch.undo()
            file = publish(staged, path)
            thread, found = in_thread(lambda: other.get(1))
            thread.join(DEADLINE_SECONDS)
            outcome.extend(found)
            return file

        monkeypatch.setattr(shard_cache, "publish", publish_and_be_robbed)
        cache.get(0)
        assert [type(error) for error in outcome] == [CacheFullError]
        assert cached(directory) == [0]
        assert server.requests[NAMES[0]] == 1


def test_no_room_is_reported_with_numbers(
    server: FlakyServer, directory: Path, shard_bytes: int
) -> None:
    with open_cache(server, directory, 2 * shard_bytes + 1) as cache:
        cache.get(0)
        cache.get(1)
        sentence = (
            f"no room for {shard_bytes:,} bytes: jobs on this host use {2 * shard_bytes:,} of "
            rf"data\.cache_bytes {2 * shard_bytes + 1:,}; raise data\.cache_bytes, lower"
        )
        with pytest.raises(CacheFullError, match=sentence), cache.hurried():
            cache.get(2)
        assert cached(directory) == [0, 1]
        cache.release(0)
        cache.get(2)
        assert cached(directory) == [1, 2]


def test_room_is_waited_for(server: FlakyServer, directory: Path, shard_bytes: int) -> None:
    with (
        open_cache(server, directory, shard_bytes) as cache,
        open_cache(server, directory, shard_bytes) as other,
    ):
        other.get(0)
        thread, outcome = in_thread(lambda: cache.get(1))
        thread.join(0.3)
        assert thread.is_alive()
        other.release(0)
        thread.join(DEADLINE_SECONDS)
        assert outcome == [cache.get(1)]


# A full disk


def test_on_a_full_disk_shards_go_first(
    server: FlakyServer, directory: Path, shard_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    allocate = os.posix_fallocate

    def allocate_on_small_disk(file: int, offset: int, size: int) -> None:
        if count_bytes(directory) + size > 2 * shard_bytes:
            raise OSError(errno.ENOSPC, "No space left on device")
        allocate(file, offset, size)

    monkeypatch.setattr(os, "posix_fallocate", allocate_on_small_disk)
    with open_cache(server, directory) as cache:
        for number in (0, 1, 2):
            cache.get(number)
            cache.release(number)
        assert cached(directory) == [1, 2]
        cache.get(1)
        cache.get(2)
        sentence = (
            f"the disk of the cache .+ has no room for {shard_bytes:,} bytes: [0-9,]+ are free, "
            f"jobs on this host use {2 * shard_bytes:,} of the cache; free space, or"
        )
        with pytest.raises(CacheFullError, match=sentence), cache.hurried():
            cache.get(3)
        assert cached(directory) == [1, 2]
        assert not list(directory.glob("*/.tmp-*"))


def test_a_disk_that_is_really_small(
    server: FlakyServer, directory: Path, shard_bytes: int
) -> None:
    directory.mkdir()
    size = 3 * shard_bytes + 100_000  # the small files and a folder's own space
    mount = f'mount -t tmpfs -o size={size} none "$0" && exec "$@"'
    prefix = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    probe = [*prefix, mount, str(directory), "true"]
    try:
        subprocess.run(probe, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this user may not mount a small disk")
    numbers = [0, 1, 2, 3, 4, 5, 0]
    job = start_job(server, directory, 10**12, numbers, *prefix, mount, str(directory))
    finish(job, numbers)
    assert server.requests[NAMES[0]] == 2


# Staging ahead


def test_shards_are_staged_ahead_in_order_as_far_as_there_is_room(
    server: FlakyServer, directory: Path, shard_bytes: int
) -> None:
    with (
        open_cache(server, directory, 3 * shard_bytes) as cache,
        cache.ahead(5, 2, 4, 0, 1) as shards,
    ):
        for place, ahead in enumerate(([2, 4, 5], [0, 2, 4], [0, 1, 4])):
            wait_until(lambda ahead=ahead: cached(directory) == ahead)  # type: ignore[misc]
            shards.passed(place + 1)
        assert max(server.requests[name] for name in NAMES) == 1


def test_who_needs_a_shard_now_takes_the_room_of_the_farthest(
    server: FlakyServer, directory: Path, shard_bytes: int
) -> None:
    """Of its own job's, and of another job's that shares the cache."""
    with (
        open_cache(server, directory, 4 * shard_bytes) as cache,
        open_cache(server, directory, 4 * shard_bytes) as other,
        other.ahead(0, 1, 2, 3, 4) as shards,
    ):
        wait_until(lambda: len(shards._ahead) == 4)
        age(directory)
        cache.get(5)
        assert cached(directory) == [0, 1, 2, 5]
        with shards.reading(4):
            assert cached(directory) == [0, 1, 4, 5]


def age(directory: Path) -> None:
    """Let shards have been staged in the order of their numbers, whichever came first."""
    for number, path in enumerate(sorted(directory.glob("*/val-*.tar"))):
        os.utime(path, (number, number))


def test_what_could_not_be_staged_ahead_is_reported_to_who_needs_it(
    server: FlakyServer, folder: Path, directory: Path
) -> None:
    missing = folder / NAMES[1]
    content = missing.read_bytes()
    missing.unlink()
    with open_cache(server, directory) as cache, cache.ahead(0, 1, 2):
        wait_until(lambda: server.requests[NAMES[1]] > 3 and cached(directory) == [0, 2])
        with pytest.raises(FetchError, match=f"{NAMES[1]} could not be fetched in 3 attempts"):
            cache.get(1)
        assert cached(directory) == [0, 2]
        missing.write_bytes(content)
        wait_until(lambda: cached(directory) == [0, 1, 2])
        assert is_same(cache.get(1), folder)


def test_what_is_closed_leaves_nothing_behind(server: FlakyServer, directory: Path) -> None:
    """Not even in the middle of a fetch that stalls."""
    threads = threading.active_count()
    server.faults[NAMES[0]] = ["stall"]
    with open_cache(server, directory) as cache:
        files = num_open_files()
        with cache.ahead(0) as shards:
            assert server.has_stalled.wait(DEADLINE_SECONDS)
            thread, _ = in_thread(shards.close)
            thread.join(DEADLINE_SECONDS)
            assert not thread.is_alive()
    assert not list(directory.glob("*/.tmp-*"))
    server.goes_on.set()
    wait_until(lambda: threading.active_count() <= threads)
    wait_until(lambda: num_open_files() <= files)


# Several processes


def test_processes_fetch_each_shard_once(
    server: FlakyServer, directory: Path, shard_bytes: int
) -> None:
    numbers = list(range(NUM_SHARDS))
    jobs = [
        start_job(server, directory, NUM_SHARDS * shard_bytes, order)
        for order in (numbers, numbers, numbers[::-1])
    ]
    for job, order in zip(jobs, (numbers, numbers, numbers[::-1]), strict=True):
        finish(job, order)
    assert {name: server.requests[name] for name in NAMES} == dict.fromkeys(NAMES, 1)
    assert server.requests["val.index.npy"] == 1


@pytest.mark.slow
def test_jobs_share_a_cache_smaller_than_the_set(
    server: FlakyServer, directory: Path, shard_bytes: int
) -> None:
    max_bytes = 3 * shard_bytes
    orders = [[0, 1, 2, 3, 4, 5] * 4, [5, 3, 1, 0, 2, 4] * 4]
    jobs = [start_job(server, directory, max_bytes, order) for order in orders]
    wait_until(directory.is_dir)
    while any(job.poll() is None for job in jobs):
        assert used_bytes(directory) <= max_bytes
    for job, order in zip(jobs, orders, strict=True):
        finish(job, order)
    assert used_bytes(directory) == max_bytes, "nothing is evicted before the room is needed"


def test_a_job_killed_in_the_middle_of_staging_leaves_no_trace(
    server: FlakyServer, folder: Path, directory: Path, shard_bytes: int
) -> None:
    server.faults[NAMES[0]] = ["stall"]
    job = start_job(server, directory, 2 * shard_bytes, [0])
    assert server.has_stalled.wait(DEADLINE_SECONDS)
    wait_until(lambda: used_bytes(directory) == shard_bytes)
    with open_cache(server, directory, 2 * shard_bytes) as cache:
        waiting, outcome = in_thread(lambda: cache.get(0))  # it is that job's to stage
        cache.get(1)
        assert server.requests[NAMES[0]] == 1
        assert len(list(directory.glob("*/.tmp-*"))) == 1
        job.kill()
        job.communicate()
        waiting.join(DEADLINE_SECONDS)
        assert outcome == [cache.get(0)]
        assert is_same(cache.get(0), folder)
        assert not list(directory.glob("*/.tmp-*"))


def test_room_that_a_killed_job_had_taken_is_found(
    server: FlakyServer, directory: Path, shard_bytes: int
) -> None:
    """Even if nobody asks for that shard again; what a living job stages stays."""
    server.faults |= {NAMES[0]: ["stall"], NAMES[1]: ["stall"]}
    job = start_job(server, directory, 2 * shard_bytes, [0])
    assert server.has_stalled.wait(DEADLINE_SECONDS)
    server.has_stalled.clear()
    job.kill()
    job.communicate()
    assert used_bytes(directory) == shard_bytes
    with open_cache(server, directory, 2 * shard_bytes) as cache:
        thread, _ = in_thread(lambda: cache.get(1))
        assert server.has_stalled.wait(DEADLINE_SECONDS)
        cache.get(2)
        (living,) = directory.glob("*/.tmp-*")
        assert NAMES[1] in living.name
        server.goes_on.set()
        thread.join(DEADLINE_SECONDS)
        assert cached(directory) == [1, 2]


def test_a_directory_that_cannot_be_used_is_named(server: FlakyServer, directory: Path) -> None:
    directory.write_text("a file")
    with pytest.raises(FileExistsError, match="cache"):
        open_cache(server, directory)
