"""Reads what `torch.save` wrote, of files that may come from anyone: nothing in them is executed.

Such a file is a zip of a pickle and of the tensors' bytes. torch's own reader of tensors and plain
values takes the pickle apart; here the zip is looked at before that.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch


def load_tensors(path: Path, device: torch.device | None = None, *, mapped: bool = False) -> Any:
    """The tensors and plain values in the file, on `device`; None: the CPU.

    With `mapped` tensors are read from the file when they are used: it must stay as it is.

    Raises `OSError` if it cannot be read, and `ValueError` with one sentence if it holds anything
    else, or is damaged.
    """
    _check_zip(path)
    try:
        with path.open("rb") as file:  # torch maps only what has a name in UTF-8
            source = f"/proc/self/fd/{file.fileno()}" if mapped else file
            place = device or "cpu"
            return torch.load(source, map_location=place, weights_only=True, mmap=mapped)
    except (OSError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a damaged pickle raises anything
        # Only its first line: the next ones advise to execute what the file holds.
        reason = str(error).strip().partition("\n")[0].partition(". ")[0]
        raise ValueError(
            f"{path} is not a file of tensors and plain values alone, and nothing in it was "
            f"executed ({type(error).__name__}: {reason}); give one that torch.save wrote of a "
            "state dict"
        ) from None


def _check_zip(path: Path) -> None:
    """Raise `ValueError` if the file is no whole zip, or one that is larger inside than outside."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError) as error:
        raise ValueError(
            f"{path} is damaged, or no file that torch.save wrote ({error}): copy it "
            "again, or save it anew if a torch before 1.6 wrote it"
        ) from None
    is_packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if is_packed or sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise ValueError(
            f"{path} holds compressed or overlapping entries, which torch.save never writes: give "
            "a file that it wrote"
        )
