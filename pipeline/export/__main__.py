"""Writes a trained network in formats that other programs read, with a model card.

    python -m pipeline.export RUN|RUN@best|RUN@STEP|CHECKPOINT --to DIR --format safetensors,onnx

DIR appears complete or not at all.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, cast

from data_prep.shard_set.fields import Reads
from data_prep.shard_set.files import (
    TEMPORARY_PREFIX,
    describe,
    sync_directory,
    write_atomically,
)
from data_prep.shard_set.options import Named, read_options
from data_prep.shard_set.streams import exit_code_after_flush, open_streams, say
from pipeline.export.card import write_card
from pipeline.export.formats import Format, content_of, file_name, read_formats
from pipeline.export.onnx_model import OPSET, GraphOptions
from pipeline.trained.network import TrainedNetwork, open_trained


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Write a trained network in formats that other programs read, with a model card."""

    source: Annotated[str, Named("SOURCE")]
    """RUN (its newest checkpoint), RUN@best, RUN@STEP, a checkpoint's folder or an export."""
    to: Annotated[Path, Named("--to", "DIR")]
    """The folder to make; it must be new or empty."""
    format: Annotated[str, Reads(read_formats)] = "safetensors"
    """Of safetensors, torch (a state dict), onnx and pt2 (of torch.export) one or more, with commas
    between them."""
    opset: Annotated[int | None, Named("--opset")] = None
    """Version of ONNX's operators; if not given, 17."""
    preprocessing: bool = False
    """Let the ONNX graph take uint8 images and give probabilities, in place of normalized images
    and logits."""

    def check(self) -> tuple[Format, ...]:
        """The formats; raises `ValueError` if an option has no effect on them."""
        formats = cast(tuple[Format, ...], tuple(self.format.split(",")))
        given = {"--opset": self.opset is not None, "--preprocessing": self.preprocessing}
        for name, is_given in given.items():
            if is_given and "onnx" not in formats:
                raise ValueError(f"{name} has an effect only with --format onnx: leave it out")
        return formats


def export(
    network: TrainedNetwork, folder: Path, formats: Sequence[Format], graph: GraphOptions
) -> None:
    """Write the network into `folder`, whole or not at all.

    Raises `ValueError` if `folder` is in use or a format cannot have the network, `OSError` if it
    cannot be written, and `ImportError` without the extra `export`.
    """
    with whole_folder(folder) as aside:
        for form in formats:
            write_atomically(aside / file_name(form), content_of(form, network, graph))
        write_card(network, aside, formats, graph)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A new folder that becomes `path` when the block ends without an error.

    Raises `ValueError` if there is something at `path`, and `OSError` if it cannot be made.
    """
    path = path.resolve()
    _check_is_free(path)
    if not path.parent.is_dir():
        raise ValueError(f"--to {path}: {path.parent} is no folder; make it first")
    aside = path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{secrets.token_hex(4)}")
    aside.mkdir()
    try:
        yield aside
        _check_is_free(path)  # still
        aside.rename(path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    sync_directory(path.parent)


def _check_is_free(path: Path) -> None:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        what = "is not empty" if path.is_dir() else "is a file"
        raise ValueError(f"--to {path} {what}: give a new or an empty folder")


def main(arguments: Sequence[str] | None = None) -> int:
    options = read_options("pipeline.export", Options, arguments)
    try:
        formats = options.check()
        opset = OPSET if options.opset is None else options.opset
        graph = GraphOptions(opset=opset, preprocessing=options.preprocessing)
        export(open_trained(options.source), options.to, formats, graph)
    except ImportError as error:
        say(f"error: {error}: pip install 'alexnet-2012[export]'", stream=sys.stderr)
        return 1
    except (OSError, ValueError) as error:
        say(f"error: {describe(error)}", stream=sys.stderr)
        return 1
    for path in sorted(options.to.iterdir()):
        say(f"{path}  {path.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    open_streams()
    sys.exit(exit_code_after_flush(main()))
