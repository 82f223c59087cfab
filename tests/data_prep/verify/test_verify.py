"""Every damage is found, all damages are, and each is named."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.shard_set.files import sha256_of
from data_prep.shard_set.index import read_index
from data_prep.shard_set.manifest import Manifest, ShardSetError, Split, read_manifest
from data_prep.verify.verify import find_damages
from tests.data_prep.odd_jpegs import lossless
from tests.data_prep.raw_data import copy_tree, jpeg, run_cli, write_folder

SHARD = "train-000001.tar"
ROW = 25  # in the index: of a sample in the middle of SHARD
Members = list[tuple[str, bytes]]


@pytest.fixture
def shards(tmp_path: Path, synthetic: Path) -> Path:
    return copy_tree(synthetic, tmp_path / "shards")


def verify(shards: Path, *, full: bool) -> list[str]:
    steps: list[tuple[int, int]] = []
    found = find_damages(
        shards, full=full, num_threads=2, show=lambda done, total: steps.append((done, total))
    )
    assert all(done <= total for done, total in steps)
    return [str(damage) for damage in found]


def keys_of(shard: Path) -> list[str]:
    with tarfile.open(shard) as archive:
        return [name.partition(".")[0] for name in archive.getnames()[::2]]


def row_of(shards: Path, row: int = ROW) -> tuple[int, int]:
    """Offset and length of an image in its shard."""
    manifest = read_manifest(shards)
    entry = read_index(shards, manifest.split("train"))[row]
    return int(entry["offset"]), int(entry["num_bytes"])


def cut(shard: Path, num_bytes: int) -> None:
    shard.write_bytes(shard.read_bytes()[:num_bytes])


def flip_bit(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 4
    path.write_bytes(content)


def read_tar(shard: Path) -> Members:
    with tarfile.open(shard) as archive:
        return [
            (member.name, file.read())
            for member in archive
            if (file := archive.extractfile(member)) is not None
        ]


def write_tar(shard: Path, members: Members) -> None:
    with tarfile.open(shard, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def edit_manifest(shards: Path, **fields: Any) -> None:
    """Change values of the train split."""
    path = shards / "_info.json"
    info = json.loads(path.read_text())
    info["splits"]["train"].update(fields)
    path.write_text(json.dumps(info))


def make_consistent(shards: Path) -> None:
    """Make the manifest agree with SHARD as it now is, as a faulty writer would have."""
    split = read_manifest(shards).split("train")
    edit_manifest(
        shards,
        shard_bytes=[(shards / name).stat().st_size for name in split.filenames],
        shard_sha256=[sha256_of(shards / name) for name in split.filenames],
        index_sha256=sha256_of(shards / split.index_filename),
    )


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("name", ["synthetic", pytest.param("cifar10", marks=pytest.mark.slow)])
def test_whole_shard_set_has_no_damage(
    request: pytest.FixtureRequest, name: str, full: bool
) -> None:
    assert verify(request.getfixturevalue(name), full=full) == []


def test_shard_cut_in_a_member(shards: Path) -> None:
    key = keys_of(shards / SHARD)[5]
    offset, num_bytes = row_of(shards)
    cut(shards / SHARD, offset + 700)
    damages = verify(shards, full=False)
    assert damages[0] == f"{SHARD}: key {key}: cut off in {key}.npy, 700 of {num_bytes} bytes"
    assert f"{SHARD}: holds 5 whole samples; expected 20" in damages


def test_shard_cut_between_samples(shards: Path) -> None:
    last = keys_of(shards / SHARD)[4]
    cut(shards / SHARD, row_of(shards)[0] - 512)
    damages = verify(shards, full=False)
    assert damages[0] == f"{SHARD}: cut off after {last}.cls: it has no end mark"
    assert f"{SHARD}: holds 5 whole samples; expected 20" in damages
    make_consistent(shards)
    assert damages[0] in verify(shards, full=False)


def test_shard_cut_between_the_members_of_a_sample(shards: Path) -> None:
    key = keys_of(shards / SHARD)[5]
    offset, num_bytes = row_of(shards)
    cut(shards / SHARD, offset + -(-num_bytes // 512) * 512)
    damages = verify(shards, full=False)
    assert f"{SHARD}: cut off after {key}.npy: it has no end mark" in damages
    assert f"{SHARD}: key {key}: it has no .cls" in damages


def test_shard_of_no_bytes(shards: Path) -> None:
    size = (shards / SHARD).stat().st_size
    cut(shards / SHARD, 0)
    assert verify(shards, full=False) == [
        f"{SHARD}: cut off after the start: it has no end mark",
        f"{SHARD}: has 0 bytes; expected {size}",
        f"{SHARD}: holds 0 whole samples; expected 20",
    ]


def test_flipped_bit_in_pixels(shards: Path) -> None:
    offset, num_bytes = row_of(shards)
    flip_bit(shards / SHARD, offset + num_bytes - 5)
    key = keys_of(shards / SHARD)[5]
    expected = [f"{SHARD}: key {key}: its image is not the one that was written (CRC-32)"]
    assert verify(shards, full=True) == expected
    make_consistent(shards)
    assert verify(shards, full=True) == expected


def test_flipped_bits_in_jpegs(tmp_path: Path, cifar10: Path) -> None:
    shards = copy_tree(cifar10, tmp_path / "shards")
    for row in (41, 45):  # of train-000001.tar; a bit of the file's first mark and one of its data
        offset, num_bytes = row_of(shards, row)
        flip_bit(shards / SHARD, offset if row == 41 else offset + num_bytes - 10)
    keys = keys_of(shards / SHARD)
    damages = verify(shards, full=True)
    assert len(damages) == 2
    assert damages[0].startswith(f"{SHARD}: key {keys[1]}: its image does not decode: ")
    assert damages[1].startswith(f"{SHARD}: key {keys[5]}: its image ")


def test_flipped_bit_in_a_label(shards: Path) -> None:
    key = keys_of(shards / SHARD)[5]
    label = int(read_index(shards, read_manifest(shards).split("train"))["label"][ROW])
    offset, num_bytes = row_of(shards)
    flip_bit(shards / SHARD, offset + -(-num_bytes // 512) * 512 + 512)
    (damage,) = verify(shards, full=True)
    assert damage.startswith(f"{SHARD}: key {key}: its label is ")
    assert str(label) in damage or "expected a number below 10" in damage


def test_flipped_bit_in_a_header(shards: Path) -> None:
    keys = keys_of(shards / SHARD)
    flip_bit(shards / SHARD, row_of(shards)[0] - 512 + 50)
    damages = verify(shards, full=False)
    assert damages[0].startswith(
        f"{SHARD}: key {keys[5]}: damaged tar header after {keys[4]}.cls (bad checksum)"
    )


def test_garbage_for_a_shard(shards: Path) -> None:
    num_bytes = (shards / SHARD).stat().st_size
    (shards / SHARD).write_bytes(b"\xff\xfe." * (num_bytes // 3))
    assert verify(shards, full=True)[0] == (
        f"{SHARD}: damaged tar header after the start (invalid header): what follows cannot be read"
    )


def test_flipped_bit_between_members(shards: Path) -> None:
    flip_bit(shards / SHARD, row_of(shards)[0] - 512 - 100)  # in the padding after a label
    assert verify(shards, full=True) == [
        f"{SHARD}: its sha256 is wrong, though all its samples are whole"
    ]


def rewrite(shards: Path, change: Callable[[Members], Members]) -> list[str]:
    """Change the members of SHARD, and the manifest with it; returns the keys before."""
    keys = keys_of(shards / SHARD)
    write_tar(shards / SHARD, change(read_tar(shards / SHARD)))
    make_consistent(shards)
    return keys


def test_interleaved_members(shards: Path) -> None:
    def interleave(members: Members) -> Members:
        return [*members[:4], members[4], members[6], members[5], members[7], *members[8:]]

    keys = rewrite(shards, interleave)
    text = "its .npy and .cls are not next to each other, in this order"
    damages = verify(shards, full=False)
    assert damages[:2] == [f"{SHARD}: key {key}: {text}" for key in keys[2:4]]


def test_label_before_its_image(shards: Path) -> None:
    keys = rewrite(shards, lambda members: [members[1], members[0], *members[2:]])
    assert verify(shards, full=False)[0] == (
        f"{SHARD}: key {keys[0]}: its .npy and .cls are not next to each other, in this order"
    )


def test_duplicate_key_in_a_shard(shards: Path) -> None:
    keys = rewrite(shards, lambda members: [*members[:36], *members[:2], *members[38:]])
    damages = verify(shards, full=False)
    assert f"{SHARD}: key {keys[0]}: duplicate key: it is in {SHARD} already" in damages


def test_duplicate_key_in_another_shard(shards: Path) -> None:
    first = read_tar(shards / "train-000000.tar")[:2]
    rewrite(shards, lambda members: [*first, *members[2:]])
    key = first[0][0].partition(".")[0]
    text = f"{SHARD}: key {key}: duplicate key: it is in train-000000.tar already"
    assert text in verify(shards, full=False)


def test_unexpected_members_and_keys(shards: Path) -> None:
    def change(members: Members) -> Members:
        (first, image), (_, label), *rest = members
        assert first.endswith(".npy")
        return [("a b.npy", image), ("a b.cls", label), ("x.json", b"{}"), *rest, ("y.cls", b"1")]

    rewrite(shards, change)
    assert verify(shards, full=False)[:3] == [
        f"{SHARD}: key x: unexpected member .json; expected .npy, .cls",
        f"{SHARD}: key y: it has no .npy",
        f"{SHARD}: key a b: the key has characters other than A-Z a-z 0-9 _ -",
    ]


def test_wrong_count(shards: Path) -> None:
    rewrite(shards, lambda members: members[:-2])
    assert f"{SHARD}: holds 19 whole samples; expected 20" in verify(shards, full=False)


def test_numbers_that_contradict_each_other(shards: Path) -> None:
    edit_manifest(shards, num_samples=61)
    with pytest.raises(ShardSetError, match="the numbers of split 'train' contradict each other"):
        verify(shards, full=False)


def test_encoding_that_does_not_exist(shards: Path) -> None:
    path = shards / "_info.json"
    path.write_text(path.read_text().replace('"rgb"', '"rgc"'))
    with pytest.raises(ShardSetError, match="encoding is 'rgc', expected jpeg or rgb"):
        verify(shards, full=False)


def test_manifest_without_end(shards: Path) -> None:
    (shards / "_info.json").write_text("[" * 100_000)
    with pytest.raises(ShardSetError, match=r"_info\.json is damaged"):
        verify(shards, full=False)


def replace_image(members: Members, content: bytes) -> Members:
    return [(members[0][0], content), *members[1:]]


def npy(pixels: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, pixels)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy(np.zeros((33, 32, 3), np.uint8)), "its image is 33×32; expected 32×32"),
        (npy(np.zeros((32, 32, 3), np.int8)), "does not decode: int8[32, 32, 3]; expected uint8"),
        (npy(np.zeros((32, 32), np.uint8)), "does not decode: uint8[32, 32]; expected uint8"),
        (npy(np.array([None])), "its image does not decode: Object arrays cannot be loaded"),
        (b"", "its image does not decode: "),
        (npy(0)[:8] + b"\x02" + npy(0)[9:], "its image does not decode: "),
        (jpeg(height=32, width=32), "its image does not decode: "),
    ],
)
def test_image_of_another_kind(shards: Path, content: bytes, message: str) -> None:
    (key, *_) = rewrite(shards, lambda members: replace_image(members, content))
    damages = verify(shards, full=True)
    assert any(d.startswith(f"{SHARD}: key {key}: ") and message in d for d in damages)


def test_jpeg_that_only_other_decoders_read(tmp_path: Path) -> None:
    """Pillow and simplejpeg do, training does not."""
    raw, shards = write_folder(tmp_path / "raw"), tmp_path / "shards"
    assert run_cli("shard", "folder", "--input", raw, "--output", shards).returncode == 0
    shard = shards / "val-000000.tar"
    (name, _), *rest = read_tar(shard)
    write_tar(shard, [(name, lossless(np.zeros((40, 60), np.uint8))), *rest])
    key = name.removesuffix(".jpg")
    expected = f"{shard.name}: key {key}: its image does not decode: Unsupported JPEG process"
    assert any(damage.startswith(expected) for damage in verify(shards, full=True))


@pytest.mark.parametrize("label", [b"10", b"-1", b"", b"cat", b"3\n", b"9" * 20, b"\xb2"])
def test_label_out_of_range(shards: Path, label: bytes) -> None:
    (key, *_) = rewrite(shards, lambda m: [m[0], (m[1][0], label), *m[2:]])
    text = f"{SHARD}: key {key}: its label is {label!r}; expected a number below 10"
    assert text in verify(shards, full=True)


def test_missing_manifest(shards: Path) -> None:
    (shards / "_info.json").unlink()
    result = run_cli("verify", shards)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith(f"error: {shards} is not a shard set: it has no _info.json")


def test_missing_and_extra_shards(shards: Path) -> None:
    (shards / SHARD).rename(shards / "train-000007.tar")
    assert verify(shards, full=True) == [
        "train-000007.tar: _info.json does not know this shard",
        f"{SHARD}: missing",
    ]


def test_folder_and_endless_link_for_shards(shards: Path) -> None:
    for name in (SHARD, "val-000000.tar"):
        (shards / name).unlink()
    (shards / SHARD).mkdir()
    (shards / "val-000000.tar").symlink_to("val-000000.tar")
    assert verify(shards, full=True) == [
        f"{SHARD}: cannot be read: Is a directory",
        "val-000000.tar: cannot be read: Too many levels of symbolic links",
    ]


@pytest.mark.parametrize("name", ["train.index.npy", "val.crc32.npy", "train.mean.npy"])
def test_damaged_side_files(shards: Path, name: str) -> None:
    content = (shards / name).read_bytes()
    flip_bit(shards / name, len(content) - 20)
    assert verify(shards, full=False)[0] == f"{name}: its sha256 is not the one in _info.json"
    (shards / name).write_bytes(content[:50])
    assert verify(shards, full=False)[0].startswith(f"{name}: not an .npy file: ")
    with (shards / name).open("wb") as file:
        np.savez(file, np.zeros(3))
    assert verify(shards, full=False)[0].startswith(f"{name}: not an .npy file: ")
    np.save(shards / name, np.zeros(3, np.int8))
    assert verify(shards, full=False)[0].startswith(f"{name}: holds int8[3]; expected ")
    (shards / name).unlink()
    assert verify(shards, full=True) == [f"{name}: missing"]


def test_a_header_of_which_numpy_says_several_lines(shards: Path) -> None:
    """Of seed 20121129 of the fuzzer of shard sets: a header of 27,182 bytes."""
    name = "val.crc32.npy"
    header = b"\x93NUMPY\x02\0" + (27_182).to_bytes(4, "little") + b" " * 27_182
    (shards / name).write_bytes(header)
    fault = verify(shards, full=False)[0]
    assert fault.startswith(f"{name}: not an .npy file: Header info length (27182) is large")
    assert fault.isprintable()


def edit_index(shards: Path, field: str, value: int) -> None:
    """Write a wrong index, and the manifest that belongs to it."""
    manifest: Manifest = read_manifest(shards)
    split: Split = manifest.split("train")
    index = np.array(read_index(shards, split))
    index[field][ROW] = value
    np.save(shards / split.index_filename, index)
    make_consistent(shards)


@pytest.mark.parametrize("field", ["shard", "offset", "num_bytes"])
def test_index_that_leads_elsewhere(shards: Path, field: str) -> None:
    edit_index(shards, field, 1024)
    key = keys_of(shards / SHARD)[5]
    (damage,) = verify(shards, full=False)
    assert damage.startswith(f"{SHARD}: key {key}: the index has it at shard, offset, bytes = ")


def test_index_with_another_label(shards: Path) -> None:
    label = int(read_index(shards, read_manifest(shards).split("train"))["label"][ROW])
    edit_index(shards, "label", (label + 1) % 10)
    key = keys_of(shards / SHARD)[5]
    assert verify(shards, full=True) == [
        f"{SHARD}: key {key}: its label is {label}, in the index {(label + 1) % 10}"
    ]


def test_all_damages_are_listed_one_a_line(shards: Path) -> None:
    offset, num_bytes = row_of(shards)
    flip_bit(shards / SHARD, offset + num_bytes - 5)
    flip_bit(shards / "val-000000.tar", 512 + 3000)
    (shards / "train-000002.tar").unlink()
    (shards / "val.index.npy").unlink()
    result = run_cli("verify", shards, "--full")
    assert result.returncode == 1
    lines = result.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "val.index.npy", SHARD, "train-000002.tar", "val-000000.tar",
    ]  # fmt: skip
    assert result.stderr.startswith(f"error: {shards} is damaged (listed above: 4)")


def test_command_on_a_whole_shard_set(synthetic: Path) -> None:
    result = run_cli("verify", synthetic)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"{synthetic}: no damage found (structure only")
