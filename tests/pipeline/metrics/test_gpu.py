"""What a rank says of its GPU, by a stand-in for the driver's library."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from prometheus_client import CollectorRegistry

from data_prep.shard_set.families import exposition
from pipeline.config.schema import MetricsConfig
from pipeline.metrics.gpu import GpuCollector
from pipeline.metrics.publisher import Publisher
from pipeline.run.directory import RunDirectory
from pipeline.train.publishing import publishing
from tests.pipeline.monitoring import parse, require_tool
from tests.pipeline.worlds import SINGLE

UUID = "GPU-0a1b2c3d-0123-4567-89ab-0123456789ab"
RANK = {"rank": "5", "local_rank": "1"}


def nvml(folder: Path, *options: str) -> str:
    """The path of the stand-in, compiled."""
    library = folder / "libnvidia-ml.so.1"
    source = Path(__file__).with_name("nvml.c")
    words = [require_tool("cc"), "-shared", "-fPIC", *options, "-o", str(library), str(source)]
    subprocess.run(words, check=True)
    return str(library)


def publishes(library: str, uuid: str = UUID) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(GpuCollector(uuid, rank=5, local_rank=1, library=library))
    return registry


def test_the_gpu_is_named_as_the_driver_does_and_its_energy_counts_from_the_start(
    tmp_path: Path,
) -> None:
    registry = publishes(nvml(tmp_path))
    info = frozenset({**RANK, "gpu_uuid": UUID, "gpu_index": "1"}.items())
    energies = []
    for _ in range(4):
        samples = parse(exposition(registry))
        assert samples["alexnet_gpu_info", info] == 1
        energies.append(samples["alexnet_gpu_energy_joules_total", frozenset(RANK.items())])
        assert len(samples) == 2
    assert energies == [1.5, 3, 3, 6], "since the first reading; the fourth one fails"


@pytest.mark.parametrize("lacks", ["library", "GPU", "counter"])
def test_what_nvml_does_not_know_is_left_out(tmp_path: Path, lacks: str) -> None:
    library = nvml(tmp_path, *(["-DWITHOUT_ENERGY"] if lacks == "counter" else []))
    uuid = "GPU-unknown" if lacks == "GPU" else UUID
    registry = publishes("none.so" if lacks == "library" else library, uuid)
    index = "1" if lacks == "counter" else ""
    info = frozenset({**RANK, "gpu_uuid": uuid, "gpu_index": index}.items())
    for _ in range(2):
        assert parse(exposition(registry)) == {("alexnet_gpu_info", info): 1}


def test_a_rank_publishes_it(tmp_path: Path) -> None:
    registry = publishes(nvml(tmp_path))
    Publisher(tmp_path, registry, rank=5, local_rank=1, interval_seconds=2).close()
    published = (tmp_path / "rank-00005.prom").read_text()
    assert f'alexnet_gpu_info{{gpu_index="1",gpu_uuid="{UUID}",local_rank="1",rank="5"}} 1.0' in (
        published
    )


def test_training_on_a_gpu_publishes_its_uuid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch gives the digits alone; the driver and DCGM say `GPU-` before them."""
    properties = SimpleNamespace(uuid=UUID.removeprefix("GPU-"))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    world = dataclasses.replace(SINGLE, device=torch.device("cuda", 0))
    run = RunDirectory(tmp_path)
    with publishing(MetricsConfig(exporter=False), run, world):
        pass
    assert f'gpu_uuid="{UUID}"' in (run.metrics / "rank-00000.prom").read_text()
