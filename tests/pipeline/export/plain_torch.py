"""Runs programs of `torch.export` where nothing of this project can be imported.

    python -I plain_torch.py FOLDER

Each FOLDER/NAME.pt2 gets FOLDER/NAME.in.npy, and its logits go to FOLDER/NAME.out.npy.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

if __name__ == "__main__":
    for name in ("data_prep", "launch", "pipeline", "tests"):
        sys.modules[name] = None  # type: ignore[assignment]  # so that importing it fails
    torch.set_num_threads(1)
    for path in sorted(Path(sys.argv[1]).glob("*.pt2")):
        module = torch.export.load(path).module()
        logits = module(torch.from_numpy(np.load(path.with_suffix(".in.npy"))))
        np.save(path.with_suffix(".out.npy"), logits.numpy())
