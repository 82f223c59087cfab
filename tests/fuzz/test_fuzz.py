"""Each fuzzer for a moment: `python -m tests.fuzz --seconds 600` is for longer."""

from __future__ import annotations

import functools
import gzip
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from data_prep.shard_set.index import INDEX_DTYPE
from tests.fuzz import running
from tests.fuzz.harness import Harness, Target, WrongValueError, check_sentence, expect
from tests.fuzz.harnesses import NAMES, harness_of
from tests.fuzz.mutation import pack_tar
from tests.fuzz.reach import UNREACHED, reading_in
from tests.fuzz.running import FoundError, Outcome, fuzz
from tests.test_architecture import SOURCES, module_name

_SECONDS = 3
_MOST_INPUTS = 400
"""The same ones on every machine that takes them within the seconds: most take a tenth of them."""


@pytest.fixture(scope="module")
def outcome_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Outcome]:
    """Runs the fuzzer of a name for a moment, once."""

    @functools.cache
    def run(name: str) -> Outcome:
        return fuzz(name, 1, _SECONDS, tmp_path_factory.mktemp(name), _MOST_INPUTS)

    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_damage_is_refused_or_changes_nothing(
    name: str, outcome_of: Callable[[str], Outcome]
) -> None:
    assert outcome_of(name).inputs > 0


@pytest.mark.slow
def test_each_function_that_reads_files_has_a_fuzzer_or_a_reason(
    outcome_of: Callable[[str], Outcome],
) -> None:
    reading = {f"{module_name(source)}:{name}" for source in SOURCES for name in reading_in(source)}
    reached = {function for name in NAMES for function in outcome_of(name).reached}
    assert reading - reached <= UNREACHED.keys()
    assert reading >= UNREACHED.keys(), "reasons for what is no longer there"


@pytest.mark.parametrize(
    "line",
    [
        *(
            "json.loads(x)",
            "read_json(x)",
            "np.lib.format.read_array(x)",
            "np.load(x)",
            "struct.unpack('<I', x)",
            "FORM.unpack_from(x, 3)",
        ),
        *(
            "torch.load(x)",
            "tarfile.open(x)",
            "zipfile.ZipFile(x)",
            "int(match[1])",
            "x.read_text()",
        ),
        *("int(x.split()[0])", "float(x.read())", "int(x.group('n'))", "pq.ParquetFile(x)"),
    ],
)
def test_each_way_to_read_a_file_is_seen(line: str, tmp_path: Path) -> None:
    source = tmp_path / "x.py"
    source.write_text(f"class A:\n    def f(x):\n        def g():\n            return {line}\n")
    assert reading_in(source) == {"A.f.<locals>.g"}
    source.write_text("def f(x):\n    return int(x), json.dumps(x), x.split(), counts[x]\n")
    assert not reading_in(source)


def _crash(content: bytes) -> None:
    if len(content) > 3:
        raise IndexError("index out of range")


def _tell_lies(content: bytes) -> None:
    expect(content == b"abc", "another value")


@pytest.mark.parametrize(("read", "what"), [(_crash, IndexError), (_tell_lies, WrongValueError)])
def test_a_fault_is_found(
    read: Callable[[bytes], None],
    what: type[Exception],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(running, "_bound", lambda: None)  # of this process
    target = Target([b"abc"], read)
    harness = Harness(name="faulty", prepare=lambda _folder: target, errors=(ValueError,))
    with pytest.raises(what):
        running.run_harness(harness, 1, 5, tmp_path)
    assert (tmp_path / "input").read_bytes() != b"abc"


def test_what_a_child_finds_is_told_with_its_input(tmp_path: Path) -> None:
    with pytest.raises(FoundError, match="no-such-fuzzer, seed 3, exit code 1"):
        fuzz("no-such-fuzzer", 3, 0.1, tmp_path)


def _tar_gz(name: str, size: bytes) -> bytes:
    header = bytearray(pack_tar([(name, b"x" * 30)]))
    header[124:136] = size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    return gzip.compress(bytes(header), mtime=0)


def _npz(**arrays: npt.NDArray[Any]) -> bytes:
    packed = io.BytesIO()
    np.savez(packed, allow_pickle=False, **arrays)
    return packed.getvalue()


def _npy(array: npt.NDArray[Any]) -> bytes:
    packed = io.BytesIO()
    np.save(packed, array)
    return packed.getvalue()


_INFINITE = b'# {"rank": 0, "local_rank": 0, "host": "h", "pid": Infinity, "start_ticks": 1, '

_DEEP = b"[" * 600 + b"]" * 600
"""Python reads that, and cannot take it apart."""
_OF_A_DATASET = (
    *("title", "source", "encoding", "image_size", "class_names", "statistics", "num_samples"),
    *("manifest_sha256", "options"),
)

FINDINGS = (
    ("pixels", _npz(x=np.zeros(3))),
    ("pixels", _npy(np.zeros((0, 4, 3), np.uint8))),
    ("manifest", b'{"format_version": 1, "splits": {"train": %s}, "statistics": {}}' % _DEEP),
    ("dataset", b"{%s}" % b", ".join(b'"%s": %s' % (n.encode(), _DEEP) for n in _OF_A_DATASET)),
    ("devkit", _tar_gz("meta.mat", b"\x80" + b"\x7f" * 11)),
    ("cifar10", gzip.compress(bytes(200), 1, mtime=0)),
    ("cifar10-folder", b"\1" + pickle.dumps([1, 2])),
    ("rank-file", _INFINITE + b'"since": 1.0, "interval_seconds": 1.0}\n# EOF\n'),
    ("rank-file", b"# " + b"[" * 100_000),
    ("neighbours", b'{"step": Infinity, "nearest": {}}'),
    ("conversion-plan", b'{"settings": {"samples_per_shard": 0}, "class_names": ["x"]}'),
    ("manifest", b'{"format_version": 1, "splits": {}, "statistics": {"num_images": 1e400}}'),
    ("best", b"step-" + b"0" * 400),
    ("heartbeat", b'{"count": 3, "host": "h", "phase": "x", "step": "12", "seconds": 1.5}'),
    ("first-failure", b'{"text": "x", "rank": "1"}'),
    ("checkpoint-settings", b'{"recipe": "x", "config": [], "manifest_sha256": "0"}'),
    ("config", b'{"recipe": "x", "config": {}, "manifest_sha256": "0", "forked_from": 100}'),
    ("unpacked", bytes(24)),
    ("pixel-reader", b"\5" + _npy(np.array([(7, 0, 9, 0)] * 6, INDEX_DTYPE))),
    ("pixel-reader", b"\5" + _npy(np.array([(0, 1 << 63, 9, 0)] * 6, INDEX_DTYPE))),
)
"""What was found once: it must be refused."""


_HUGE = b'{"kind": "end", "step": 1%s, "epoch": 0.5, "time": 1.0, "outcome": "failed"}'

with (Path(__file__).parents[1] / "formats/v1/run/events.jsonl").open() as _rows:
    _RUN = json.loads(_rows.readline())
_COUNTS = ("local_batch_size", "accumulation_steps", "global_batch_size", "world_size")

HARMLESS = (
    *(
        ("events", json.dumps(_RUN | {name: 0}).encode())
        for name in (*_COUNTS, "steps_per_epoch", "target_steps")
    ),
    ("events", _HUGE % (b"0" * 400)),
    ("target", b'[{"targets": ["h:1"], "labels": {"__param_exporter": [], "x": 1}}]'),
    ("target", b"[" * 100_000),
    ("lock", json.dumps({"host": "h", "start": None, "log": "a" * 5000}).encode()),
    ("lock", b"[" * 100_000),
    ("input-stamps", _npz(manifest_sha256=np.array("0" * 64), stamps=np.zeros(4, np.uint64))),
    ("input-stamps", _npz(manifest_sha256=np.array("0" * 64), stamps=np.zeros(5))),
    ("events", b'{"kind": "end", "step": 1, "epoch": 0.5, "time": 1.0, "outcome": "failed"}\rx'),
    ("events", b'{"kind": "end", "step": true, "epoch": 0.5, "time": 1.0, "outcome": "failed"}'),
)
"""The same: it must be read as nothing."""


@pytest.mark.parametrize(("name", "content"), FINDINGS)
def test_what_was_found_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    harness = harness_of(name)
    read = harness.prepare(tmp_path).read
    with pytest.raises(harness.errors) as error:
        read(content)
    check_sentence(error.value)


@pytest.mark.parametrize(("name", "content"), HARMLESS)
def test_what_was_found_does_no_harm(name: str, content: bytes, tmp_path: Path) -> None:
    harness_of(name).prepare(tmp_path).read(content)
