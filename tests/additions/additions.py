"""One addition of each kind, as the rows of "Where do I add …" say: small, and whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tests.additions.scratch import Scratch


def add_network(scratch: Scratch) -> None:
    """`tiny`: one convolution."""
    build = "pipeline/model/build.py"
    scratch.add_name("pipeline/config/model.py", "ModelName", "tiny")
    scratch.insert("pipeline/config/model.py", '"alexnet_cifar": (', '    "tiny": (100, 1, 0),\n')
    scratch.insert(build, "import AlexNet2014", "from pipeline.model.tiny import Tiny\n")
    case = '        case "tiny":\n            return Tiny(num_classes)\n'
    scratch.insert(build, "return AlexNetCifar(", case)
    scratch.add_module("pipeline/model/tiny.py")


QUICK = '''

def cifar10_quick() -> Config:
    """`cifar10` for one epoch."""
    return dataclasses.replace(cifar10(), epochs=1)


RECIPES = {'''


def add_recipe(scratch: Scratch) -> None:
    """`cifar10_quick`."""
    recipes = "pipeline/config/recipes.py"
    scratch.replace(recipes, "\n\nRECIPES = {", QUICK)
    scratch.replace(recipes, "cifar10, cifar10_blog),", "cifar10, cifar10_blog, cifar10_quick),")


def add_optimizer(scratch: Scratch) -> None:
    """`rmsprop`, with the epsilon that Adam has."""
    config = "pipeline/config/optim.py"
    scratch.add_name(config, "OptimizerName", "rmsprop")
    scratch.replace(
        config,
        "epsilon: Annotated[float, above(0), only_with(_ADAM)]",
        'epsilon: Annotated[float, above(0), only_with((_ADAM, one_of("optim.name", "rmsprop")))]',
    )
    case = '            case "rmsprop":\n                return 1\n'
    scratch.insert(config, "                return 2", case)
    scratch.insert(
        "pipeline/optim/optimizer.py",
        "return torch.optim.AdamW(",
        '        case "rmsprop":\n'
        "            return torch.optim.RMSprop(groups, lr=rate, eps=config.epsilon)\n",
    )


GREYS = '''

@dataclass(frozen=True, kw_only=True)
class Greys(_Sharding):
    """Paint images of one colour."""

    num_images: int = 10
    """Number of images of each split."""

    def open(self) -> Source:
        return open_greys(self.num_images)


SOURCES: '''


def add_source(scratch: Scratch) -> None:
    """`greys`: images of one colour."""
    sharding = "data_prep/sharding.py"
    scratch.add_module("data_prep/sources/greys.py")
    scratch.insert(
        sharding, "import open_folder", "from data_prep.sources.greys import open_greys\n"
    )
    scratch.replace(sharding, "\n\nSOURCES: ", GREYS)
    scratch.insert(sharding, '"folder": Folder,', '    "greys": Greys,\n')
    scratch.insert(
        "data_prep/shard_set/manifest.py", '"synthetic": "', '    "greys": "shades of grey",\n'
    )


PNG = """
def _encode_png(pixels: Pixels, _: int | None) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _decode_png(content: bytes) -> Pixels:
    try:
        return np.asarray(Image.open(io.BytesIO(content)))
    except Exception as error:
        raise ValueError(str(error)) from None


def _size_of_png(content: bytes) -> tuple[int, int]:
    height, width, _ = _decode_png(content).shape
    return height, width


_PNG = Codec(
    suffix="png",
    encode=_encode_png,
    decode=_decode_png,
    size_of=_size_of_png,
    cut=partial(cut_decoded, _decode_png),
)


def codec_of("""


def add_encoding(scratch: Scratch) -> None:
    """`png`, which keeps the pixels of JPEGs as they are."""
    codec = "data_prep/shard_set/codec.py"
    scratch.add_name("data_prep/shard_set/manifest.py", "WrittenEncoding", "png")
    scratch.insert(codec, "import numpy.typing as npt", "from PIL import Image\n")
    scratch.replace(codec, "\ndef codec_of(", PNG)
    scratch.insert(codec, "return _RGB", '        case "png":\n            return _PNG\n')


JOINED = """
def _open_joined(shards: ShardSet, split_name: str) -> SampleIndex:
    split = shards.manifest.split(split_name)
    path = shards.folder / f"{split_name}.joined"
    rows = np.array(read_index(shards.folder, split))
    rows["offset"] += np.cumsum([0, *split.shard_bytes])[rows["shard"]].astype(np.uint64)
    rows["shard"] = 0
    return SampleIndex(
        encoding=shards.manifest.encoding,
        image_size=shards.manifest.image_size,
        rows=rows,
        checksums=read_checksums(shards.folder, split),
        prefix=b"",
        files=LocalFiles([path]),
        paths=[path],
        are_tars=True,
        remedy="join the shards again",
    )


def _open_tars("""


def add_reader(scratch: Scratch) -> None:
    """`joined`: the tars of a split one after another in one file, SHARDS/SPLIT.joined."""
    config, opening = "pipeline/config/data.py", "pipeline/data/readers/open.py"
    scratch.add_name(config, "ReaderName", "joined")
    for names in ('"tar" | "remote" | "beton"', '"tar", "beton", "resident"'):
        scratch.replace(config, names, f'{names} {"|" if "|" in names else ","} "joined"')
    scratch.insert(
        opening,
        "index = _open_tars(",
        '        case "joined":\n            index = _open_joined(shards, split)\n',
    )
    scratch.replace(opening, "\ndef _open_tars(", JOINED)


def add_rank_metric(scratch: Scratch) -> None:
    metrics = "pipeline/metrics/rank.py"
    scratch.replace(
        "pipeline/metrics/declared.py",
        "\n\n# Of the job.",
        "\nMICRO_BATCHES = _count(\n"
        '    "train_micro_batches_total", "Micro-batches of all steps", "accumulation as it is"\n'
        ")\n\n# Of the job.",
    )
    scratch.insert(
        metrics,
        "(declared.LOADER_QUEUE)",
        "        self._micro_batches = families.counter(declared.MICRO_BATCHES)\n",
    )
    scratch.insert(
        metrics,
        "self._loader_queue.set(",
        "\n    def record_micro_batches(self, num_micro_batches: int) -> None:\n"
        "        self._micro_batches.inc(num_micro_batches)\n",
    )
    scratch.insert(
        "pipeline/train/log_interval.py",
        "components.metrics.record_queue(",
        "        components.metrics.record_micro_batches(components.plan.accumulation_steps)\n",
    )


def add_job_metric(scratch: Scratch) -> None:
    metrics = "pipeline/metrics/job.py"
    scratch.replace(
        "pipeline/metrics/declared.py",
        "\n\n# Of the exporter.",
        '\nSECONDS_LEFT = _job("gauge", "left_seconds", "Time to the end", "when it is done")\n'
        "\n# Of the exporter.",
    )
    scratch.insert(
        metrics,
        "self._add_checkpoints(families)",
        "        self._seconds_left = families.gauge(declared.SECONDS_LEFT, ABSENT)\n",
    )
    scratch.insert(
        metrics,
        "self._not_learning.set(",
        "\n    def record_seconds_left(self, seconds: float | None) -> None:\n"
        "        self._seconds_left.set(seconds)\n",
    )
    scratch.insert(
        "pipeline/train/journal.py",
        "self._eta.seconds_after(event.step)",
        "        self._metrics.record_seconds_left(left)\n",
    )


def add_slurm_option(scratch: Scratch) -> None:
    spec = "launch/spec.py"
    scratch.insert(
        spec,
        '"""SLURM\'s account."""',
        '    reservation: _Word | None = None\n    """SLURM\'s reservation."""\n',
    )
    scratch.replace(
        spec, '"account": self.account', '"account": self.account, "reservation": self.reservation'
    )


def add_kubernetes_option(scratch: Scratch) -> None:
    scratch.insert(
        "launch/kubernetes_spec.py",
        '"""Memory of a pod, with what is in its /dev/shm;',
        '    priority: str = ""\n    """The pods\' priority class."""\n',
    )
    scratch.insert("launch/kubernetes.py", '"port": _PORT,', '        "priority": spec.priority,\n')
    scratch.insert(
        "launch/indexed-job.yaml.in",
        "subdomain: @@{name}",
        "    priorityClassName: @@{priority}\n",
    )


def add_checkpoint_field(scratch: Scratch) -> None:
    scratch.insert(
        "pipeline/train/progress.py", "skipped_in_a_row: int = 0", "    num_samples: int = 0\n"
    )
    scratch.insert(
        "pipeline/train/loop.py",
        "components.replica.update(wants_norm=",
        "        components.progress.num_samples += plan.samples_in_step(step)\n",
    )


def add_exit_code(scratch: Scratch) -> None:
    """76, of a job whose time ran out before a step was saved."""
    ending = "pipeline/run/ending.py"
    scratch.insert(ending, '\'try again\'."""', "    STUCK = 76\n")
    scratch.replace(ending, '"interrupted" | "stopped" | "stuck":', '"interrupted" | "stopped":')
    scratch.insert(
        ending,
        "return ExitCode.STOPPED",
        '        case "stuck":\n            return ExitCode.STUCK\n',
    )
    scratch.insert(
        "launch/slurm.py", "str(ExitCode.STOPPED),", "        stuck=str(ExitCode.STUCK),\n"
    )
    end = 'give the job more of it"'
    scratch.replace("launch/train.sbatch.in", f"{end} ;;", f"{end}; exit @@{{stuck}} ;;")


LUMA = """

def mean_luma(sums: PixelSums) -> float:
    red, green, blue = (int(value) for value in sums.sums)
    return (299 * red + 587 * green + 114 * blue) / (1000 * sums.num_pixels)
"""


def add_statistic(scratch: Scratch) -> None:
    """The mean luma of BT.601."""
    statistics = "data_prep/convert/statistics.py"
    scratch.insert(statistics, "return (sums.image_sum / ", LUMA)
    scratch.insert(statistics, "mean=colour_mean(", "        luma=mean_luma(sums),\n")
    scratch.insert(
        "data_prep/shard_set/manifest.py",
        "mean_image_sha256: str | None = None",
        "    luma: float | None = None\n",
    )


def add_follower(scratch: Scratch) -> None:
    """`csv`: the numbers as a table, RUN/numbers.csv."""
    scratch.add_name("pipeline/follow/destination.py", "DestinationName", "csv")
    scratch.insert(
        "pipeline/follow/command.py",
        "return functools.partial(MlflowRun,",
        '        case "csv":\n'
        "            from pipeline.follow.csv_table import CsvTable\n\n"
        '            return functools.partial(CsvTable, run.path / "numbers.csv")\n',
    )
    scratch.add_module("pipeline/follow/csv_table.py")


ALERT = """\
    Alert(
        name="LossHigh",
        severity="warning",
        condition="max by (run) (alexnet_train_loss) > 100",
        hold="5m",
        summary="run {{ $labels.run }} has a high loss",
        description="The loss of {{ $labels.run }} is {{ $value }}.",
        yields_to=("NotLearning",),
    ),
"""


def add_alert(scratch: Scratch) -> None:
    """`LossHigh`, which `NotLearning` explains."""
    path = "launch/monitoring/alerts.py"
    scratch.replace(
        path,
        '    Alert(\n        name="Straggler",',
        f'{ALERT}    Alert(\n        name="Straggler",',
    )


def add_panel(scratch: Scratch) -> None:
    """The epoch of a run."""
    panel = '    _graph("Epoch", "none", _of_run("epoch")),\n'
    scratch.insert("launch/monitoring/panels.py", "\n_RUN = (".strip(), panel)


ADDITIONS: Mapping[str, Callable[[Scratch], None]] = {
    "a network": add_network,
    "a recipe": add_recipe,
    "an optimizer": add_optimizer,
    "a source": add_source,
    "an encoding": add_encoding,
    "a reader": add_reader,
    "a rank metric": add_rank_metric,
    "a job metric": add_job_metric,
    "an alert": add_alert,
    "a panel": add_panel,
    "a SLURM option": add_slurm_option,
    "a Kubernetes option": add_kubernetes_option,
    "a field in the checkpoint": add_checkpoint_field,
    "a follower": add_follower,
    "an exit code": add_exit_code,
    "a statistic": add_statistic,
}
