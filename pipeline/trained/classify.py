"""Classifies images as the evaluation of their network would: the same pixels, the same views."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from data_prep.shard_set.codec import codec_of
from data_prep.shard_set.decoding import pixels_of, quiet, read_image
from data_prep.shard_set.files import path_option
from data_prep.shard_set.pixels import BILINEAR, LANCZOS, Pixels, scale_middle
from data_prep.shard_set.rejection import RejectedImage
from pipeline.trained.network import TrainedNetwork, open_trained
from pipeline.trained.scores import ranked, scores_of_views

AnyImage = str | Path | bytes | Image.Image | npt.NDArray[np.uint8]
"""A file, the content of one, what Pillow has opened, or uint8 H×W×3 (RGB)."""

_BLOCK_IMAGES = 32
"""Images that a thread reads, and the network sees, at once."""
_NPY = b"\x93NUMPY"


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """What a network says of one image."""

    class_names: tuple[str, ...]
    """Of the network, in label order."""
    probabilities: npt.NDArray[np.float32]
    """Of each class, in label order."""
    ranking: npt.NDArray[np.int64]
    """All labels, the most probable first."""

    @property
    def class_name(self) -> str:
        """The most probable class."""
        return self.top(1)[0][0]

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """The most probable classes, at most `count`, and their probabilities."""
        labels = self.ranking[:count].tolist()
        return [(self.class_names[label], float(self.probabilities[label])) for label in labels]


class Classifier:
    """A trained network with its preprocessing: from images to classes and their probabilities.

        model = load_model("runs/first")
        model("cat.jpg").top(3)                  # [("tabby", 0.62), ("tiger cat", 0.2), …]
        [one.class_name for one in model(["cat.jpg", "dog.png"])]

    An image is decoded and turned upright as in a conversion. Then its middle is scaled to the size
    of the shard set's images, or, where these differ in size, to `augment.evaluation_pixels`.
    """

    def __init__(self, network: TrainedNetwork, views: int | None = None) -> None:
        """`views`: 1 or 10 of each image; None: as many as in the evaluations of its training.

        Raises `ValueError` if the images are too small for ten different views.
        """
        self.network = network
        self.views = views or network.config.evaluation.views
        self._viewer = network.viewer(self.views)

    @property
    def class_names(self) -> tuple[str, ...]:
        """In label order."""
        return self.network.dataset.class_names

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a str is a sequence of such
        self, images: AnyImage
    ) -> Prediction: ...
    @overload
    def __call__(self, images: Sequence[AnyImage]) -> list[Prediction]: ...
    def __call__(self, images: Any) -> Prediction | list[Prediction]:
        """Classify one image, or each of a sequence.

        Raises what `read` raises of the first image that cannot be used.
        """
        is_one = isinstance(images, str | Path | bytes | Image.Image | np.ndarray)
        found = self._all([images] if is_one else list(images))
        return found[0] if is_one else found

    def _all(self, images: Sequence[AnyImage]) -> list[Prediction]:
        found = list[Prediction]()
        for number, answer in enumerate(self.each([partial(_itself, one) for one in images])):
            match answer, images[number]:
                case Prediction(), _:
                    found.append(answer)
                case ValueError(), str() | Path() as path:
                    raise ValueError(f"{path}: {answer}")
                case ValueError(), _:
                    raise ValueError(f"image {number}: {answer}")
                case OSError(), _:
                    raise answer
        return found

    def each(
        self, images: Sequence[Callable[[], AnyImage]]
    ) -> Generator[Prediction | OSError | ValueError]:
        """For each image, in order, what the network says of it, or why it cannot be used.

        Threads, one a core, call the functions, and compute what they give: with one thread of
        torch, as an evaluation does, whose sums they therefore repeat.
        """
        blocks = [
            images[start : start + _BLOCK_IMAGES] for start in range(0, len(images), _BLOCK_IMAGES)
        ]
        num_threads = min(len(os.sched_getaffinity(0)), max(len(blocks), 1))
        with (
            quiet(),
            exact_arithmetic(),
            ThreadPoolExecutor(num_threads, "classify", torch.set_num_threads, (1,)) as pool,
        ):
            for answers in pool.map(self._answer, blocks):
                yield from answers

    def _answer(
        self, images: Sequence[Callable[[], AnyImage]]
    ) -> list[Prediction | OSError | ValueError]:
        answers = dict[int, Prediction | OSError | ValueError]()
        usable = dict[int, Pixels]()
        for number, image in enumerate(images):
            try:
                usable[number] = self.read(image())
            except (OSError, ValueError) as error:
                answers[number] = error
        if usable:
            for number, answer in zip(usable, self._compute(list(usable.values())), strict=True):
                answers[number] = answer
        return [answers[number] for number in range(len(images))]

    def _compute(self, images: list[Pixels]) -> Iterator[Prediction | ValueError]:
        with torch.inference_mode():
            batch = torch.from_numpy(np.stack(images)).to(self.network.device)
            scores = scores_of_views([self.network.model(view) for view in self._viewer(batch)])
            rankings, is_number = ranked(scores).cpu().numpy(), scores.isfinite().all(1).tolist()
            probabilities = scores.exp().float().cpu().numpy()
        for row, is_sound in enumerate(is_number):
            if is_sound:
                yield Prediction(self.class_names, probabilities[row], rankings[row])
            else:
                yield ValueError("the network's answer is not a number: its weights are too large")

    def read(self, image: AnyImage) -> Pixels:
        """The image as the network's views are taken from it, uint8 H×W×3.

        Raises `OSError` if its file cannot be read, and `ValueError` if it is not an image.
        """
        pixels = decoded(image)
        # As a conversion scales; without a fixed size, as readers scale in evaluation.
        has_size = self.network.dataset.image_size is not None
        return scale_middle(pixels, self.network.evaluated_size, LANCZOS if has_size else BILINEAR)


def _itself(image: AnyImage) -> AnyImage:
    return image


@contextlib.contextmanager
def exact_arithmetic() -> Iterator[None]:
    """fp32 is fp32, as in training; afterwards torch's settings are as they were before."""
    num_threads, cudnn = torch.get_num_threads(), torch.backends.cudnn
    allowed, cudnn.allow_tf32 = cudnn.allow_tf32, False
    try:
        yield
    finally:
        cudnn.allow_tf32 = allowed
        torch.set_num_threads(
            num_threads
        )  # for threads to come, which would take one from the pool


def decoded(image: AnyImage) -> Pixels:
    """The whole image, upright, uint8 H×W×3; raises `OSError`, and `ValueError` if it is none."""
    try:
        return _pixels(image)
    except RejectedImage as error:
        raise ValueError(str(error)) from None


def _pixels(image: AnyImage) -> Pixels:
    if isinstance(image, str | Path):
        image = path_option(str(image)).read_bytes()
    if isinstance(image, bytes):
        return _stored_pixels(image) if image.startswith(_NPY) else read_image(image)[0]
    if isinstance(image, Image.Image):
        return pixels_of(image)
    if not isinstance(image, np.ndarray):
        raise TypeError(
            f"an image of type {type(image).__name__}; expected a path, the bytes of an image, "
            "an image of Pillow or an array of uint8"
        )
    is_rgb = image.ndim == 3 and image.shape[2] == 3 and 0 not in image.shape
    if image.dtype != np.uint8 or not is_rgb:
        raise ValueError(
            f"an image is an array of {image.dtype}{list(image.shape)}; expected "
            "uint8[height, width, 3], RGB"
        )
    return np.ascontiguousarray(image)


def _stored_pixels(content: bytes) -> Pixels:
    """Of an .npy as it is in the tars of shard sets that hold pixels."""
    try:
        return codec_of("rgb").decode(content)
    except ValueError as error:
        with contextlib.suppress(ValueError):
            return codec_of("yuv420").decode(content)
        raise error


def load_model(
    source: str | Path, device: str | torch.device | None = None, views: int | None = None
) -> Classifier:
    """Open a trained network, ready to classify images.

    `source` is a run directory, RUN@best, RUN@STEP, the folder of a checkpoint, or that of an
    export. `device` is as torch names it; None: the first GPU if there is one, else the CPU.
    `views` is 1 or 10; None: as in the evaluations of its training. Raises `ValueError` if the
    source is none of these, or cannot be used, and `OSError` if a file cannot be read; nothing in
    its files is executed.
    """
    if views not in (None, 1, 10):
        raise ValueError(f"views is {views}; expected 1 or 10")
    has_gpu = torch.cuda.is_available()
    try:
        chosen = torch.device(device or ("cuda" if has_gpu else "cpu"))
    except RuntimeError:
        raise ValueError(f"device is {device!r}; expected a name such as cpu or cuda:0") from None
    if chosen.type == "cuda" and not has_gpu:
        raise ValueError(f"device is {device}, and torch finds no GPU here: use cpu")
    return Classifier(open_trained(str(source), chosen), views)
