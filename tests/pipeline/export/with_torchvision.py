"""Puts exported weights into torchvision's own `alexnet`, where torchvision is installed.

    PYTHON with_torchvision.py WEIGHTS.pt INPUTS.npy LOGITS.npy

All names and shapes must be torchvision's. Of the inputs, float32 N×3×224×224, the logits are
written. Knows nothing of this project: PYTHON is an interpreter of another environment.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
import torchvision

if __name__ == "__main__":
    weights, inputs, output = sys.argv[1:]
    state = torch.load(weights, weights_only=True)
    model = torchvision.models.alexnet(num_classes=len(state["classifier.6.bias"])).eval()
    model.load_state_dict(state, strict=True)
    torch.set_num_threads(1)
    with torch.inference_mode():
        blocks = torch.from_numpy(np.load(inputs, mmap_mode="c")).split(100)
        logits = torch.cat([model(block) for block in blocks])
    np.save(output, logits.numpy())
