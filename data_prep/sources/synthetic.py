"""The source `synthetic`: drawn shapes of ten classes, for trying things out without a download.

A class is a shape and nothing else: colours, place, size, angle, background, clutter and noise are
random, so the mean colour of an image says nothing about its class.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_prep.shard_set.pixels import Pixels
from data_prep.sources.samples import Sample, SampleTable
from data_prep.sources.source import Source

Floats = npt.NDArray[np.float64]

_MIN_CONTRAST = 110.0
"""Least distance of the shape's colour from the background's, in RGB."""
_MAX_ANGLE = np.pi / 5
"""Of the shape's turn: things mostly stand upright in pictures."""
_NUM_CLUTTER = 4
_CLUTTER_OPACITY = 0.5
_MAX_NOISE_STD = 12.0


def _box(x: Floats, y: Floats, width: float, height: float) -> Floats:
    return np.maximum(np.abs(x) - width, np.abs(y) - height)


def _heart(x: Floats, y: Floats) -> Floats:
    lobes = np.hypot(np.abs(x) - 0.46, y + 0.3) - 0.54
    tip = np.maximum(np.abs(x) + y - 0.92, np.abs(x) - y - 0.76)
    heart: Floats = np.minimum(lobes, tip * np.sqrt(0.5))
    return heart


def _star(x: Floats, y: Floats) -> Floats:
    fifth = 2 * np.pi / 5
    angle = np.abs((np.arctan2(x, -y) + fifth / 2) % fifth - fifth / 2)  # 0 at a point's tip
    radius = np.hypot(x, y)
    tip, notch = np.array([1.05, 0.0]), 0.42 * np.array([np.cos(fifth / 2), np.sin(fifth / 2)])
    edge = (tip - notch) / np.hypot(*(tip - notch))
    distance: Floats = edge[0] * radius * np.sin(angle) - edge[1] * (
        radius * np.cos(angle) - tip[0]
    )
    return distance


_SHAPES: dict[str, Callable[[Floats, Floats], Floats]] = {
    "checker": lambda x, y: np.maximum(
        _box(x, y, 0.95, 0.95), np.sin(x * 6.6) * np.sin(y * 6.6) * 0.2
    ),
    "circle": lambda x, y: np.hypot(x, y) - 1,
    "crescent": lambda x, y: np.maximum(np.hypot(x, y) - 1, 0.85 - np.hypot(x - 0.5, y)),
    "cross": lambda x, y: np.minimum(_box(x, y, 1, 0.27), _box(x, y, 0.27, 1)),
    "heart": _heart,
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.8) - 0.2,
    "square": lambda x, y: _box(x, y, 0.8, 0.8),
    "star": _star,
    "stripes": lambda x, y: np.maximum(_box(x, y, 0.95, 0.95), -np.cos(x * 7.5) * 0.15),
    "triangle": lambda x, y: np.maximum(y - 0.55, np.abs(x) * 0.866 - y * 0.5 - 0.55),
}
"""By class name in label order: distance from the outline, negative inside, for a shape that
about fills [-1, 1]²; y points down."""

CLASS_NAMES = tuple(_SHAPES)


def make_synthetic(*, seed: int, size: int, num_train: int, num_val: int) -> Source:
    """Images of size×size pixels; image `i` of a split has the label `i % 10`."""
    names = CLASS_NAMES
    return Source(
        name="synthetic",
        class_names=names,
        splits={
            split: SampleTable(
                Sample(f"{names[i % len(names)]}-{i:06d}", i % len(names), f"{split}/{i}")
                for i in range(count)
            )
            for split, count in (("train", num_train), ("val", num_val))
        },
        reader=Painter(seed=seed, size=size),
        default_encoding="rgb",
    )


@dataclass(frozen=True, slots=True)
class Painter:
    """Draws the images; each depends on nothing but the seed, its split and its number."""

    seed: int
    size: int

    def stamp(self, _sample: Sample) -> int:
        return 0

    def read(self, sample: Sample) -> Pixels:
        """Draw one image, uint8 size×size×3."""
        split, number = sample.locator.split("/")
        random = np.random.default_rng([self.seed, split == "val", int(number)])
        canvas = _paint_background(self.size, random)
        contrast = _draw_color(random, apart_from=canvas.mean(axis=(0, 1)))
        shade = 1 + random.uniform(-0.25, 0.25) * _grid(self.size)[0]
        cover = _draw_shape(sample.label, self.size, random)
        canvas += cover[..., None] * (contrast * shade[..., None] - canvas)
        canvas += random.normal(0, random.uniform(2, _MAX_NOISE_STD), canvas.shape)
        return canvas.clip(0, 255).astype(np.uint8)


def _draw_shape(label: int, size: int, random: np.random.Generator) -> Floats:
    """How far each pixel is covered by the class's shape, size×size in [0, 1]."""
    x, y = _grid(size)
    radius = random.uniform(0.5, 0.85)
    angle = random.uniform(-_MAX_ANGLE, _MAX_ANGLE)
    center = random.uniform(-1, 1, 2) * (1 - 0.9 * radius)
    x, y = (x - center[0]) / radius, (y - center[1]) / radius
    x, y = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    distance = _SHAPES[CLASS_NAMES[label]](x, y)
    return (0.5 - distance * radius * size / 2).clip(0, 1)  # smooth over one pixel


def _paint_background(size: int, random: np.random.Generator) -> Floats:
    """A cloudy gradient with faint bars and discs, size×size×3."""
    x, y = _grid(size)
    corners = random.uniform(20, 235, (2, 1, 1, 3))
    angle = random.uniform(0, 2 * np.pi)
    slope = (0.5 + 0.35 * (np.cos(angle) * x + np.sin(angle) * y))[..., None]
    canvas: Floats = corners[0] + slope * (corners[1] - corners[0])
    blend = _interpolation(size)
    canvas += np.moveaxis(blend @ random.normal(0, 22, (3, 5, 5)) @ blend.T, 0, -1)
    for _ in range(_NUM_CLUTTER):
        angle, radius = random.uniform(0, 2 * np.pi), random.uniform(0.05, 0.25)
        place = random.uniform(-1, 1, 2)
        across = np.cos(angle) * (x - place[0]) + np.sin(angle) * (y - place[1])
        is_bar = random.random() < 0.5
        distance = np.abs(across) if is_bar else np.hypot(x - place[0], y - place[1])
        cover = ((radius * (0.3 if is_bar else 1) - distance) * size / 2 + 0.5).clip(0, 1)
        canvas += _CLUTTER_OPACITY * cover[..., None] * (random.uniform(0, 255, 3) - canvas)
    return canvas


def _draw_color(random: np.random.Generator, apart_from: Floats) -> Floats:
    while True:
        color: Floats = random.uniform(0, 255, 3)
        if np.linalg.norm(color - apart_from) > _MIN_CONTRAST:
            return color


@functools.cache
def _grid(size: int) -> tuple[Floats, Floats]:
    """x and y of the pixel centres, size×size each, from -1 to 1."""
    steps = (np.arange(size) + 0.5) * 2 / size - 1
    x, y = np.meshgrid(steps, steps)
    return x, y


@functools.cache
def _interpolation(size: int) -> Floats:
    """Weights that stretch 5 values over `size` pixels, size×5."""
    place = np.linspace(0, 4, size)
    return (1 - np.abs(place[:, None] - np.arange(5))).clip(0, 1)
