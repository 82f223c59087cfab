"""What it takes to add an encoding: its name and its codec, and all commands know it."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from tests.data_prep.raw_data import write_folder
from tests.test_architecture import ROOT

pytestmark = pytest.mark.slow

CODEC = """
def _encode_png(pixels: Pixels, _: int | None) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _decode_png(content: bytes) -> Pixels:
    try:
        return np.asarray(Image.open(io.BytesIO(content)))
    except Exception as error:
        raise ValueError(str(error)) from None


_PNG = Codec(
    suffix="png",
    encode=_encode_png,
    decode=_decode_png,
    size_of=lambda content: _decode_png(content).shape[:2],
    cut=partial(cut_decoded, _decode_png),
)

_JPEG ="""

CHANGES = {
    "manifest.py": (('Literal["jpeg", "rgb"]', 'Literal["jpeg", "rgb", "png"]'),),
    "codec.py": (
        ("import simplejpeg\n", "import simplejpeg\nfrom PIL import Image\n"),
        ("\n_JPEG =", CODEC),
        ("case unknown:", 'case "png":\n            return _PNG\n        case unknown:'),
    ),
}

READ = """
import sys
from pathlib import Path
import numpy as np
from data_prep.shard_set.manifest import read_manifest
from pipeline.config.augment import AugmentConfig
from pipeline.config.data import DataConfig
from pipeline.data.augment.crop_policy import evaluation_crop_policy, training_crop_policy
from pipeline.data.cache.shard_set import ShardSet
from pipeline.data.readers.open import open_reader

manifest = read_manifest(Path(sys.argv[1]))
shards = ShardSet(Path(sys.argv[1]), manifest, None)
policies = (
    evaluation_crop_policy(AugmentConfig(), manifest.image_size),
    training_crop_policy(
        AugmentConfig(crop_pixels=24, crop_place="random_resized"), manifest.image_size, 0
    ),
)
for policy in policies:
    reader = open_reader(DataConfig(), shards, "val", policy, max_corrupt=0, files=None)
    images = np.zeros((3, *reader.image_shape), np.uint8)
    reader.read(np.array([0, 1, 2]), 0, images)
    np.save(sys.stdout.buffer, images)
    reader.close()
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The product, with PNG for an encoding."""
    root = tmp_path_factory.mktemp("copy")
    for package in ("data_prep", "pipeline"):
        shutil.copytree(ROOT / package, root / package)
    for name, replacements in CHANGES.items():
        path = root / "data_prep/shard_set" / name
        text = path.read_text()
        for old, new in replacements:
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        path.write_text(text)
    return root


def run(copy: Path, *words: object) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, cwd=copy, env=environment, capture_output=True, check=False)


def ended_well(done: subprocess.CompletedProcess[bytes]) -> bytes:
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def read_copies(copy: Path, shards: Path) -> list[npt.NDArray[np.uint8]]:
    content = io.BytesIO(ended_well(run(copy, "-c", READ, shards)))
    return [np.load(content) for _ in range(2)]


def test_an_encoding_is_a_name_and_a_codec(copy: Path, tmp_path: Path) -> None:
    """PNG keeps the pixels of JPEGs as they are, so all that is read is the same as of them."""
    raw = write_folder(tmp_path / "raw")
    shards = {name: tmp_path / name for name in ("jpeg", "png")}
    for name, folder in shards.items():
        words = ("data_prep", "shard", "folder", "--input", raw, "--output", folder)
        ended_well(run(copy, "-m", *words, "--encoding", name))
        assert b"no damage found" in ended_well(
            run(copy, "-m", "data_prep", "verify", folder, "--full")
        )
    with tarfile.open(shards["png"] / "val-000000.tar") as tar:
        member = tar.getmembers()[0]
        file = tar.extractfile(member)
        assert file is not None
        assert member.name.endswith(".png")
        assert Image.open(file).format == "PNG"
    for found, expected in zip(
        *(read_copies(copy, folder) for folder in shards.values()), strict=True
    ):
        assert np.array_equal(found, expected)
        assert found.any()


def test_what_has_no_effect_or_no_place_with_it_is_refused(copy: Path, tmp_path: Path) -> None:
    raw, shards = write_folder(tmp_path / "raw"), tmp_path / "shards"
    words = ("-m", "data_prep", "shard", "folder", "--input", raw, "--output", shards)
    done = run(copy, *words, "--encoding", "png", "--jpeg-quality", 90)
    assert b"--jpeg-quality has no effect with --encoding png" in done.stderr
    ended_well(run(copy, *words, "--encoding", "png"))
    done = run(copy, "-m", "data_prep", "beton", shards, tmp_path / "out.beton")
    assert b"a .beton cannot hold images of encoding png" in done.stderr
    path = shards / "val-000000.tar"
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 20] ^= 1
    path.write_bytes(content)
    done = run(copy, "-m", "data_prep", "verify", shards, "--full")
    assert b"its image does not decode: " in done.stdout
