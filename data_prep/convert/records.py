"""Records of finished shards: facts and arrays in one .npz file, there and whole, or not there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.shard_set.files import atomic_writer

DAMAGES = (OSError, AttributeError, KeyError, TypeError, ValueError)
"""What `load_record`, and taking its facts apart, raise if there is no whole record."""

Arrays = dict[str, npt.NDArray[Any]]


def save_record(
    path: Path, facts: Mapping[str, Any], arrays: Arrays, *, durable: bool = True
) -> None:
    """Write a record; `facts` are as JSON has them."""
    with atomic_writer(path, durable=durable) as file:
        np.savez(file, allow_pickle=False, facts=np.array(json.dumps(facts)), **arrays)


def load_record(path: Path) -> tuple[dict[str, Any], Arrays]:
    """Read what `save_record` wrote; raises one of `DAMAGES`."""
    try:
        with path.open("rb") as file, np.load(file) as members:
            arrays = {name: members[name] for name in members}
        return json.loads(str(arrays.pop("facts"))), arrays
    except OSError:
        raise
    except Exception as error:  # a damaged file raises anything
        raise ValueError(f"{path} is damaged: {error}") from None
