"""Planes of `yuv420` beside pixels of `rgb`: bytes, readers, and what a network learns.

    python -m benchmarks.encodings --images DIR --cifar FOLDER [--rounds 3] [--seconds 3]
        [--epochs 10] [--seeds 2] [--json PATH]

DIR has JPEGs, such as the 1,000 of the ImageNet sample, which are stored at 256×256; FOLDER is
CIFAR-10 as train/CLASS/* and test/CLASS/*. A round reads both shard sets with every reader in
turn, crops of 224: images a second of a core's time, as they are handed over, and with the crops
made pixels on this CPU, which a GPU does by itself. Before that `cifar10` is trained on both, with
the same seeds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from benchmarks.accuracy import accuracies
from benchmarks.image_folder import find_images, link_images
from benchmarks.measurement import parser, precision_of, report, shard_folder, spread, train
from pipeline.config.augment import AugmentConfig
from pipeline.config.data import READERS, DataConfig
from pipeline.config.recipes import cifar10
from pipeline.config.schema import Config
from pipeline.data.open import open_data, take_crops
from pipeline.ranks.connect import connect
from pipeline.ranks.launcher import LaunchEnvironment
from pipeline.ranks.mesh import build_mesh

ENCODINGS = ("rgb", "yuv420")
STORED_PIXELS, CROP_PIXELS, BATCH_SIZE = 256, 224, 100
NUM_IMAGES = 1000


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The URL of a folder's files."""
    handler = functools.partial(_Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def rates(config: Config, seconds: float) -> tuple[float, float]:
    """Images for each second of a core's time: as the reader hands them over, and made pixels."""
    with (
        contextlib.ExitStack() as resources,
        connect(LaunchEnvironment(), config.distributed) as world,
    ):
        data = open_data(config, world.device, resources)
        mesh = build_mesh(world, "fused", config.distributed.timeout_seconds)
        open_batches = data.open_batches(data.plan(1), world, mesh, lambda *_: {})
        batches = resources.enter_context(open_batches(0, 1_000_000))
        for _ in range(NUM_IMAGES // BATCH_SIZE):  # what is checked or fetched once
            next(batches)
        found = []
        for converts in (False, True):
            count, begin, used = 0, time.perf_counter(), time.process_time()
            while time.perf_counter() < begin + seconds:
                batch = next(batches)
                if converts:
                    take_crops(batch.images, batch.crop_windows)
                count += batch.num_valid
            found.append(count / (time.process_time() - used))
    return found[0], found[1]


def read(root: Path, num_rounds: int, seconds: float) -> dict[str, Any]:
    """The rates of every reader on the shard sets below `root`."""
    augment = AugmentConfig(crop_pixels=CROP_PIXELS)
    taken: dict[str, dict[str, list[tuple[float, float]]]] = {}
    with contextlib.ExitStack() as servers:
        urls = {name: servers.enter_context(serving(root / name)) for name in ENCODINGS}
        for _ in range(num_rounds):
            for reader in READERS:
                for name in ENCODINGS:
                    more: dict[str, Any] = {}
                    if reader == "beton":
                        more["beton"] = str(root / f"{name}.beton")
                    elif reader == "remote":
                        more["cache_dir"] = str(root / f"cache-{name}")
                    shards = urls[name] if reader == "remote" else str(root / name)
                    config = dataclasses.replace(
                        cifar10(),
                        augment=augment,
                        data=DataConfig(shards=shards, reader=reader, **more),
                        global_batch_size=BATCH_SIZE,
                    )
                    of_reader = taken.setdefault(reader, {each: [] for each in ENCODINGS})
                    of_reader[name].append(rates(config, seconds))
    return {
        reader: {
            **{
                name: {
                    "handed_over": spread([rate for rate, _ in of_reader[name]], 0),
                    "as_pixels": spread([rate for _, rate in of_reader[name]], 0),
                }
                for name in ENCODINGS
            },
            "yuv420_of_rgb": spread(
                [
                    yuv / rgb
                    for (yuv, _), (rgb, _) in zip(
                        of_reader["yuv420"], of_reader["rgb"], strict=True
                    )
                ]
            ),
        }
        for reader, of_reader in taken.items()
    }


def learn(images: Path, root: Path, epochs: int, seeds: int) -> dict[str, Any]:
    """Val top-1 of `cifar10` on both."""
    runs: dict[str, list[list[float]]] = {name: [] for name in ENCODINGS}
    precision = ""
    for name in ENCODINGS:
        shard_folder(images, root / f"cifar-{name}", encoding=name)
    for seed in range(seeds):
        for name in ENCODINGS:
            words = ("cifar10", "--data.shards", root / f"cifar-{name}", "--seed", seed)
            events = train(root / f"run-{name}-{seed}", *words, "--epochs", epochs)
            precision = precision_of(events)
            runs[name].append(accuracies(events))
    return {
        "precision": precision,
        "epochs": epochs,
        "final_top1": {name: spread([curve[-1] for curve in runs[name]]) for name in ENCODINGS},
        "top1_by_epoch": runs,
    }


def num_bytes(shards: Path) -> int:
    return sum(path.stat().st_size for path in shards.glob("*.tar"))


def main() -> None:
    options_parser = parser(__doc__)
    options_parser.add_argument("--images", type=Path, required=True)
    options_parser.add_argument("--cifar", type=Path, required=True)
    options_parser.add_argument("--rounds", type=int, default=3)
    options_parser.add_argument("--seconds", type=float, default=3.0)
    options_parser.add_argument("--epochs", type=int, default=10)
    options_parser.add_argument("--seeds", type=int, default=2)
    options = options_parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        accuracy = learn(options.cifar, root, options.epochs, options.seeds)
        folder = link_images(find_images(options.images), root / "images", NUM_IMAGES)
        for name in ENCODINGS:
            shards = shard_folder(folder, root / name, encoding=name, size=STORED_PIXELS)
            words = ("-m", "data_prep", "beton", shards, root / f"{name}.beton")
            subprocess.run([sys.executable, *map(str, words)], check=True, stdout=sys.stderr)
        figures = {
            "claim": "yuv420 takes half the bytes of rgb, and a network learns the same from it",
            "images": NUM_IMAGES,
            "bytes": {name: num_bytes(root / name) for name in ENCODINGS},
            "images_per_core_second": read(root, options.rounds, options.seconds),
            "cifar10": accuracy
            | {"bytes": {name: num_bytes(root / f"cifar-{name}") for name in ENCODINGS}},
        }
    report(figures, options.json)


if __name__ == "__main__":
    main()
