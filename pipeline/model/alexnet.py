"""The network of 2012: two columns, as Krizhevsky, Sutskever and Hinton trained it."""

from __future__ import annotations

from typing import ClassVar, assert_never

import torch
from torch import nn
from torch.nn import functional as F

from pipeline.config.model import Initialization, ModelConfig, ResponseNorm
from pipeline.model.columns import Columns
from pipeline.model.dropout import Dropout
from pipeline.model.network import Network
from pipeline.model.response_norm import Norm, NormalizeAndPool

_OVERHANG = 3
"""Pixels by which the last windows of conv1 hang over the image: its output size is rounded up."""

_KERNELS, _UNITS = (48, 128, 192, 192, 128), 2048
"""Of one column."""


class AlexNet2012(Network):
    """NIPS 2012, sections 3 and 4.2, with what the released code says where the paper is silent.

    60,965,224 parameters at 1000 classes. conv2, conv4 and conv5 see their own column, conv3, fc6,
    fc7 and fc8 see both. The fused layout holds both columns as groups; with `columns` of one
    column the same code is that column's half, and its activations cross to the other rank.

    `docs/fidelity.md` has every choice: 224 pixels and 55 outputs; ReLU of conv1 behind its norm
    and pool, as in the code; original dropout.
    """

    image_size: ClassVar[int] = 224

    def __init__(self, num_classes: int, config: ModelConfig, columns: Columns) -> None:
        super().__init__()
        held = columns.num_held
        one, two, three, four, five = (held * kernels for kernels in _KERNELS)
        units, both = held * _UNITS, 2 // held
        self._columns = columns
        self.conv1 = nn.Conv2d(3, one, 11, stride=4)
        self.pool1 = _pool(config.response_norm, held, is_first=True)
        self.conv2 = nn.Conv2d(one, two, 5, padding=2, groups=held)
        self.pool2 = _pool(config.response_norm, held)
        self.conv3 = nn.Conv2d(both * two, three, 3, padding=1)
        self.conv4 = nn.Conv2d(three, four, 3, padding=1, groups=held)
        self.conv5 = nn.Conv2d(four, five, 3, padding=1, groups=held)
        self.pool5 = _pool("none", held)
        self.fc6 = nn.Linear(both * five * 6 * 6, units)
        self.drop6 = self._dropout(config, 0)
        self.fc7 = nn.Linear(both * units, units)
        self.drop7 = self._dropout(config, 1)
        self.fc8 = nn.Linear(units, num_classes, bias=columns.first_held == 0)
        _initialize(self, config.initialization)

    def _dropout(self, config: ModelConfig, layer: int) -> Dropout:
        first_unit = self._columns.first_held * _UNITS
        return Dropout(config.dropout, layer=layer, first_unit=first_unit, form=config.dropout_form)

    def forward(self, images: torch.Tensor, keys: torch.Tensor | None = None) -> torch.Tensor:
        """Images N×3×224×224 and, in training, dropout keys int64 N, to logits N×num_classes."""
        maps = self.conv1(F.pad(images, (0, _OVERHANG, 0, _OVERHANG)))
        maps = self.pool2(self.conv2(self.pool1(maps)))
        maps = F.relu(self.conv3(self._columns.join(maps)))
        maps = F.relu(self.conv4(maps))
        maps = self.pool5(self.conv5(maps))
        units = self._columns.join(maps).flatten(1)
        units = self.drop6(F.relu(self.fc6(units)), keys)
        units = self.drop7(F.relu(self.fc7(self._columns.join(units))), keys)
        return self._columns.add(self.fc8(units))


def _pool(form: ResponseNorm, num_columns: int, *, is_first: bool = False) -> nn.Module:
    """ReLU, response norm and pool behind a convolution.

    Section 3.3 of the paper has alpha on each square; the code divides it by their number, and has
    conv1's ReLU behind its norm and pool. Without a norm ReLU and pool commute, and behind the pool
    there is a quarter of the elements.
    """
    match form:
        case "code":
            return NormalizeAndPool(Norm(num_columns, relu_first=not is_first, alpha=1e-4 / 5))
        case "paper":
            return NormalizeAndPool(Norm(num_columns, relu_first=True, alpha=1e-4))
        case "none":
            return nn.Sequential(nn.MaxPool2d(3, 2), nn.ReLU())
        case unknown:
            assert_never(unknown)


_POSITIVE = ("conv2", "conv4", "conv5", "fc6", "fc7")
"""Layers that begin with biases above 0, so that their ReLUs learn from the start (section 5)."""


def _initialize(network: AlexNet2012, form: Initialization) -> None:
    """Gaussian weights, of deviation 0.01 where no other is given; biases of 0 or `positive`."""
    stds, positive = dict[str, float](), 1.0
    match form:
        case "code":  # `layers-145.cfg` of the released code
            stds = dict.fromkeys(("conv3", "conv4", "conv5"), 0.03)
        case "paper":  # section 5; Caffe's authors found that its loss stays flat
            pass
        case "caffe":  # `bvlc_alexnet/train_val.prototxt`
            stds, positive = dict.fromkeys(("fc6", "fc7"), 0.005), 0.1
        case unknown:
            assert_never(unknown)
    for name in ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"):
        layer: nn.Conv2d | nn.Linear = getattr(network, name)
        nn.init.normal_(layer.weight, std=stds.get(name, 0.01))
        if layer.bias is not None:
            nn.init.constant_(layer.bias, positive if name in _POSITIVE else 0.0)
