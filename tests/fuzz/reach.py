"""Which functions of the product take files apart, and which of them no fuzzer reaches, and why."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path

_CALLS = {
    *(
        "json.loads",
        "json.load",
        "read_json",
        "np.load",
        "np.fromfile",
        "np.frombuffer",
        "np.memmap",
    ),
    *("torch.load", "tarfile.open", "zipfile.ZipFile", "gzip.open", "gzip.decompress", "mmap.mmap"),
    *("csv.reader", "csv.DictReader", "Image.open", "loadmat", "load_file", "int.from_bytes"),
    *("text_string_to_metric_families", "tomllib.load", "tomllib.loads", "struct.unpack"),
}
_METHODS = {
    *("read_text", "read_bytes", "pread", "frombuf", "unpack", "unpack_from", "iter_unpack"),
    *("ParquetFile", "open_memmap", "read_array"),
}
_TEXTS = {
    *("group", "groups", "split", "partition", "rpartition", "strip", "removeprefix"),
    *("removesuffix", "decode", "read_text", "read", "readline"),
}
"""Methods that give pieces of a text, of which numbers are made."""

_REASONS: Mapping[str, tuple[str, ...]] = {
    "the kernel, a driver or another program of the system wrote it": (
        "data_prep.shard_set.memory:host_free_bytes",
        "pipeline.benchmark.measure:_private_bytes",
        "pipeline.doctor.facts:_driver_version",
        "pipeline.explain.slurm:kill_wait",
        "pipeline.explain.system:booted",
        "pipeline.explain.system:kernel_says",
        "pipeline.metrics.addresses:Node.this_one",
        "pipeline.optim.processor:_cpuinfo",
    ),
    "these are values in memory, not a file": (
        "data_prep.convert.assignment:assign",
        "data_prep.sources.selection:_rank",
        "pipeline.doctor.__main__:measure_meeting",
        "pipeline.train.evaluation:evaluate",
    ),
    "it is a name that a pattern has matched": (
        "data_prep.convert.output:begun_tasks",
        "pipeline.run.checkpoint:step_of",
    ),
    "it is only compared, byte by byte, with what this process would write": (
        "launch.options:write_own",
        "pipeline.follow.tensorboard_log:TensorBoardLog._open",
        "pipeline.follow.tensorboard_log:TensorBoardLog.show",
        "pipeline.metrics.discovery:Target.withdraw",
        "pipeline.metrics.exporter:_is_owner",
        "pipeline.ranks.stop:remove_old_request",
        "pipeline.run.dataset:_write",
        "pipeline.run.event_log:EventLog._is_line_open",
        "pipeline.train.provenance:write_settings",
    ),
    "it comes with this program, or this process has just written it": (
        "launch.monitoring.rules:render_query.<locals>.replaced",
        "launch.prometheus:render_config",
        "launch.templates:fill",
        "pipeline.follow.trackio_export:TrackioExport.show",
        "pipeline.follow.wandb_export:WandbExport.show",
        "pipeline.metrics.tables:main",
        "pipeline.watch.server:Server.__init__",
    ),
    "it is an option, which whoever calls the command gives": (
        "launch.local:_is_place",
        "launch.spec:seconds_of",
    ),
    "its bytes go to decoders, or its facts come from readers, that are reached": (
        "data_prep.adopt.contents:sum_pixels.<locals>.read",
        "pipeline.predict.inputs:_read_member",
        "pipeline.report.hidden_layer:find_neighbours",
        "pipeline.report.images:read_image",
        "pipeline.trained.classify:_pixels",
    ),
    "only damage leads there, which the same fuzzers cause": (
        "data_prep.shard_set.decoding:_png_alone",
        "data_prep.shard_set.jpegs:_read_plainly",
        "data_prep.shard_set.jpegs:_tidied",
        "pipeline.data.readers.sample_index:SampleIndex.describe",
    ),
}
"""Why whole files of no fuzzer reach a function, as `MODULE:FUNCTION`."""

UNREACHED = {name: reason for reason, names in _REASONS.items() for name in names}


def reading_in(source: Path) -> set[str]:
    """The functions of a module that take files apart, by their qualified names."""
    found: set[str] = set()
    _look(ast.parse(source.read_text()), (), found)
    return found


def _look(node: ast.AST, place: tuple[str, ...], found: set[str]) -> None:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Call) and _reads(child):
            found.add(".".join(place).removesuffix(".<locals>"))
        inside = place
        if isinstance(child, ast.ClassDef):
            inside = (*place, child.name)
        elif isinstance(child, ast.FunctionDef):
            inside = (*place, child.name, "<locals>")
        _look(child, inside, found)


def _reads(call: ast.Call) -> bool:
    name = ast.unparse(call.func)
    if name in ("int", "float"):
        return any(map(_is_piece, ast.walk(call.args[0]))) if call.args else False
    is_method = isinstance(call.func, ast.Attribute) and call.func.attr in _METHODS
    return name in _CALLS or name.endswith("Unpickler") or is_method


def _is_piece(node: ast.AST) -> bool:
    """Whether it is a piece of a text: what a method gives, or an entry with a fixed place."""
    if isinstance(node, ast.Subscript):
        return isinstance(node.value, ast.Name) and isinstance(node.slice, ast.Constant)
    called = node.func if isinstance(node, ast.Call) else None
    return isinstance(called, ast.Attribute) and called.attr in _TEXTS
