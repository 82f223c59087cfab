"""torchvision's `alexnet`: the network of 2014 in one column, without response norm."""

from __future__ import annotations

from torch import nn


def network() -> nn.Module:
    """torchvision's own where it is installed; else the same layers, written down from it.

    Images N×3×224×224 to logits N×1000.
    """
    try:
        from torchvision.models import alexnet
    except ImportError:  # or it is there, and does not fit this torch
        return written_down()
    found: nn.Module = alexnet()
    return found


def origin() -> str:
    """Which of the two it is."""
    is_own = type(network()).__module__.startswith("torchvision")
    return "torchvision's" if is_own else "the same layers written down: torchvision is missing"


def written_down() -> nn.Module:
    features = nn.Sequential(
        *(nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(inplace=True)),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(inplace=True)),
        *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),
    )
    classifier = nn.Sequential(
        *(nn.Dropout(), nn.Linear(256 * 6 * 6, 4096), nn.ReLU(inplace=True)),
        *(nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(inplace=True)),
        nn.Linear(4096, 1000),
    )
    return nn.Sequential(features, nn.AdaptiveAvgPool2d((6, 6)), nn.Flatten(), classifier)
