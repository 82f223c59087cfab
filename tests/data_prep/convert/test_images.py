"""What becomes of good, odd and bad images."""

from __future__ import annotations

import contextlib
import io
import zlib
from collections.abc import Callable
from functools import partial
from typing import get_args

import numpy as np
import numpy.typing as npt
import pytest
import simplejpeg
from PIL import Image

from data_prep.convert.images import store
from data_prep.shard_set.decoding import pixels_of, read_image
from data_prep.shard_set.manifest import Encoding
from data_prep.shard_set.rejection import RejectedImage, RejectReason, RewriteReason
from tests.data_prep.raw_data import (
    ENCODINGS,
    HEIGHT,
    WIDTH,
    deep_png,
    encode,
    jpeg,
    make_pixels,
    png_chunk,
    png_of_size,
)

PICTURE = Image.fromarray(make_pixels())


def error_of(found: npt.NDArray[np.uint8], expected: Image.Image) -> float:
    """Mean difference of two images."""
    return float(np.abs(np.asarray(found, np.float64) - np.asarray(expected, np.float64)).mean())


def stored_pixels(content: bytes, encoding: Encoding) -> npt.NDArray[np.uint8]:
    """As the readers of shards see them."""
    pixels: npt.NDArray[np.uint8] = (
        np.load(io.BytesIO(content)) if encoding == "rgb" else simplejpeg.decode_jpeg(content)
    )
    return pixels


def rotated_jpeg(orientation: int) -> bytes:
    """PICTURE, as a camera stores it that was held that way."""
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(PICTURE.transpose(undo[orientation]), "JPEG", exif=exif, quality=95)


def with_exif_orientation(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(PICTURE, "JPEG", exif=exif)


def cmyk_jpeg() -> bytes:
    return encode(PICTURE.convert("CMYK"), "JPEG", quality=95)


def ycck_jpeg() -> bytes:
    content = bytearray(cmyk_jpeg())
    content[content.index(b"Adobe") + 11] = 2  # the transform: how the channels are to be read
    return bytes(content)


def sixteen_bit_png() -> bytes:
    gray = np.asarray(PICTURE.convert("L")).astype(np.uint16) << 8
    return encode(Image.fromarray(gray), "PNG")


def transparent_png() -> bytes:
    picture = PICTURE.convert("RGBA")
    picture.putalpha(Image.new("L", picture.size, 0))
    return encode(picture, "PNG")


def jpeg_with_stray_bytes() -> bytes:
    return jpeg()[:-2] + b"stray bytes" + jpeg()[-2:]


def jpeg_with_a_hidden_table() -> bytes:
    content = jpeg()
    return content.replace(b"\xff\xdb", b"\0\xdb", 1)


def jpeg_that_stops() -> bytes:
    """Half of the picture's data, and a proper end."""
    content = jpeg(quality=95)
    return content[: len(content) // 2] + b"\xff\xd9"


def broken_png() -> bytes:
    """The length is right, the compressed data are not."""
    content = bytearray(encode(PICTURE, "PNG"))
    middle = len(content) // 2
    content[middle : middle + 100] = bytes(100)
    return bytes(content)


def cut(content: bytes) -> bytes:
    return content[: len(content) * 2 // 3]


HONEST = {
    "baseline": lambda: jpeg(),
    "progressive": lambda: jpeg(progressive=True),
    "4:2:0": lambda: jpeg(subsampling="4:2:0"),
    "grayscale": lambda: encode(PICTURE.convert("L"), "JPEG"),
    "upright": lambda: with_exif_orientation(1),
    "senseless orientation": lambda: with_exif_orientation(0),
    "damaged EXIF": lambda: encode(PICTURE, "JPEG", exif=b"Exif\0\0MM\0*nonsense"),
    "something after the end": lambda: jpeg() + b"x" * 500,
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # of Pillow, which gives the expected image
@pytest.mark.parametrize("make", HONEST.values(), ids=HONEST.keys())
def test_honest_jpeg_goes_in_byte_for_byte(make: Callable[[], bytes]) -> None:
    content = make()
    stored = store(content, "jpeg", None)
    assert stored.content == content
    assert stored.rewritten is None
    assert stored.pixels.shape == (HEIGHT, WIDTH, 3)
    expected = Image.open(io.BytesIO(content)).convert("RGB")
    assert error_of(stored.pixels, expected) < 1


def test_honest_jpeg_of_the_wanted_size_goes_in_byte_for_byte() -> None:
    content = jpeg(height=24, width=24)
    assert store(content, "jpeg", 24).content == content


CONVERTED: dict[RewriteReason, tuple[Callable[[], bytes], Image.Image]] = {
    "cmyk": (cmyk_jpeg, PICTURE),
    "sixteen_bit": (sixteen_bit_png, PICTURE.convert("L").convert("RGB")),
    "transparent": (transparent_png, Image.new("RGB", PICTURE.size, "white")),
    "palette": (lambda: encode(PICTURE.quantize(256), "PNG"), PICTURE),
    "grayscale": (lambda: encode(PICTURE.convert("L"), "PNG"), PICTURE.convert("L").convert("RGB")),
    "not_jpeg": (lambda: encode(PICTURE, "PNG"), PICTURE),
    "repaired": (jpeg_with_stray_bytes, PICTURE),
    "rotated": (lambda: rotated_jpeg(6), PICTURE),
}


DEEP = np.random.default_rng(0).integers(0, 1 << 16, (HEIGHT, WIDTH, 4), np.uint16)


def netpbm(values: npt.NDArray[np.uint16]) -> bytes:
    magic = {1: "P5", 3: "P6"}[values.shape[2]]
    return f"{magic} {WIDTH} {HEIGHT} 65535\n".encode() + values.astype(">u2").tobytes()


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(
    ("make", "channels"),
    [(deep_png, 1), (deep_png, 2), (deep_png, 3), (deep_png, 4), (netpbm, 1), (netpbm, 3)],
)
def test_the_upper_half_of_16_bits_is_kept(
    make: Callable[[npt.NDArray[np.uint16]], bytes], channels: int, encoding: Encoding
) -> None:
    """Pillow gives 8 of the 16 bits of colours without a word."""
    values = DEEP[:, :, :channels].copy()
    num_colours = 3 if channels > 2 else 1
    values[:, :, num_colours:] = 0xFFFF  # nothing shines through
    stored = store(make(values), encoding, None)
    assert stored.rewritten == "sixteen_bit"
    if encoding == "rgb":
        exact = np.broadcast_to(values[:, :, :num_colours] / 256, stored.pixels.shape)
        assert np.abs(stored.pixels - exact).max() <= 1.5


def with_chunk(kind: bytes, content: bytes) -> bytes:
    """PICTURE as a PNG, with another chunk before its pixels."""
    whole = encode(PICTURE, "PNG")
    place = whole.index(b"IDAT") - 4
    return whole[:place] + png_chunk(kind, content) + whole[place:]


ODD_PNGS = {
    "a large text": lambda: with_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(3 << 20))),
    "a large profile": lambda: with_chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(3 << 20))),
    "a text with a wrong checksum": lambda: with_chunk(b"tEXt", b"a\0b").replace(b"a\0b", b"a\0c"),
    "no end": lambda: encode(PICTURE, "PNG")[:-12],
    "something after the end": lambda: encode(PICTURE, "PNG") + b"x" * 500,
}


@pytest.mark.parametrize("name", ODD_PNGS)
def test_png_with_all_its_pixels_is_taken(name: str) -> None:
    stored = store(ODD_PNGS[name](), "rgb", None)
    assert np.array_equal(stored.pixels, np.asarray(PICTURE))
    assert stored.rewritten is None


def test_png_with_a_large_text_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    whole = encode(PICTURE, "PNG", exif=exif)
    place = whole.index(b"IDAT") - 4
    text = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(3 << 20)))
    stored = store(whole[:place] + text + whole[place:], "rgb", None)
    assert stored.rewritten == "rotated"
    assert np.array_equal(stored.pixels, np.asarray(PICTURE)[::-1, ::-1])


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (bytes, "empty: it has no bytes; copy it again from its source"),
        (
            lambda: b"<html>404</html>",
            "not_an_image: it begins with b'<html>404</html>', which Pillow takes for no image; "
            "remove it, or convert it to JPEG or PNG",
        ),
        (
            lambda: b"\x89PNG\r\n\x1a\n" + b"?" * 8,
            "undecodable: it begins with b'\\x89PNG', and its header is damaged; copy it "
            "again from its source, or convert it to an 8-bit RGB JPEG or PNG",
        ),
        (
            lambda: jpeg()[:-100],
            "truncated: Corrupt JPEG data: premature end of data segment; "
            "copy it again from its source",
        ),
        (
            lambda: b"\xff\xd8\xff\xc0\0\x0b\x08\xff\0\xff\0\x01\x01\x11\0" + jpeg()[2:],
            "too_large: 65280×65280 pixels; expected at most 89,478,485; scale it down",
        ),
        (
            lambda: encode(Image.new("F", (8, 8)), "TIFF"),
            "undecodable: TIFF of mode F: what its values mean is unknown; copy it again "
            "from its source, or convert it to an 8-bit RGB JPEG or PNG",
        ),
    ],
)
def test_a_rejection_says_what_is_wrong_and_what_to_do(
    make: Callable[[], bytes], sentence: str
) -> None:
    with pytest.raises(RejectedImage) as rejection:
        store(make(), "jpeg", None)
    assert str(rejection.value) == sentence


def test_every_reason_is_tested() -> None:
    reasons = {*CONVERTED, "resized", "recoded", "not_recoded"}
    assert reasons == set(get_args(RewriteReason))
    assert set(BAD) == set(get_args(RejectReason))


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("reason", CONVERTED)
def test_odd_image_is_converted(reason: RewriteReason, encoding: Encoding) -> None:
    make, expected = CONVERTED[reason]
    stored = store(make(), encoding, None)
    is_lossless = reason == "not_jpeg" and encoding == "rgb"
    assert stored.rewritten == (None if is_lossless else reason)
    found = stored_pixels(stored.content, encoding)
    assert found.shape == (HEIGHT, WIDTH, 3)
    np.testing.assert_array_equal(stored.pixels, found)
    assert error_of(found, expected) < 6


@pytest.mark.parametrize("reason", CONVERTED)
def test_an_image_that_pillow_has_opened_is_read_by_the_same_rules(reason: RewriteReason) -> None:
    content = CONVERTED[reason][0]()
    with Image.open(io.BytesIO(content)) as image:
        assert error_of(pixels_of(image), Image.fromarray(read_image(content)[0])) < 2


def test_an_opened_image_without_meaning_is_rejected() -> None:
    with pytest.raises(RejectedImage, match="what its values mean is unknown"):
        pixels_of(Image.new("F", (4, 4)))


@pytest.mark.parametrize("orientation", range(2, 9))
def test_image_is_turned_upright(orientation: int) -> None:
    stored = store(rotated_jpeg(orientation), "jpeg", None)
    assert stored.rewritten == "rotated"
    assert error_of(stored.pixels, PICTURE) < 2


def test_ycck_is_converted() -> None:
    stored = store(ycck_jpeg(), "jpeg", None)
    assert stored.rewritten == "cmyk"
    assert simplejpeg.decode_jpeg_header(stored.content)[2] == "YCbCr"
    assert error_of(stored.pixels, Image.open(io.BytesIO(ycck_jpeg())).convert("RGB")) < 2


def damaged_header(kind: str) -> bytes:
    """An image that begins as its format does, and then makes no sense."""
    content = encode(PICTURE, kind)
    start = 12 if kind == "WEBP" else 8
    return content[:start] + b"\xff" * 30


BAD: dict[RejectReason, list[Callable[[], bytes]]] = {
    "empty": [bytes],
    "not_an_image": [lambda: b"<html>404</html>", lambda: b"\x1f\x8b\x08\0" + bytes(100)],
    "truncated": [
        lambda: cut(jpeg()),
        lambda: cut(jpeg(progressive=True)),
        lambda: cut(cmyk_jpeg()),
        lambda: cut(encode(PICTURE, "PNG")),
        lambda: jpeg()[:200],
        jpeg_that_stops,
    ],
    "undecodable": [
        lambda: encode(Image.new("F", (8, 8)), "TIFF"),
        broken_png,
        jpeg_with_a_hidden_table,
        *(partial(damaged_header, kind) for kind in ("PNG", "GIF", "TIFF", "WEBP")),
    ],
    "too_large": [lambda: png_of_size(50_000, 50_000), lambda: png_of_size(10_000, 10_000)],
}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(
    ("reason", "make"), [(reason, make) for reason, makers in BAD.items() for make in makers]
)
def test_bad_image_is_rejected(
    reason: RejectReason, make: Callable[[], bytes], encoding: Encoding
) -> None:
    with pytest.raises(RejectedImage) as rejection:
        store(make(), encoding, None)
    assert rejection.value.reason == reason


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"])
def test_damage_of_any_kind_is_a_rejection_or_a_picture(kind: str) -> None:
    rng = np.random.default_rng(0)
    whole = np.frombuffer(encode(PICTURE, kind), np.uint8)
    for _ in range(300):
        content = whole.copy()
        places = rng.integers(0, min(len(content), rng.choice([40, 400, 4000])), rng.integers(1, 4))
        content[places] = rng.integers(0, 256, len(places))
        with contextlib.suppress(RejectedImage):
            assert store(content.tobytes(), "rgb", 16).pixels.shape == (16, 16, 3)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (20, 90), (10, 12), (1, 3000)])
def test_resizing_keeps_the_middle_square(shape: tuple[int, int], encoding: Encoding) -> None:
    height, width = shape
    side, size = min(shape), 24
    content = jpeg(height=height, width=width, quality=95)
    stored = store(content, encoding, size)
    assert stored.rewritten == "resized"
    assert stored.pixels.shape == (size, size, 3)
    top, left = (height - side) // 2, (width - side) // 2
    middle = Image.open(io.BytesIO(content)).crop((left, top, left + side, top + side))
    assert error_of(stored.pixels, middle.resize((size, size), Image.Resampling.LANCZOS)) < 3


def test_pixels_are_stored_without_loss() -> None:
    pixels = make_pixels(height=32, width=32)
    stored = store(pixels, "rgb", None)
    np.testing.assert_array_equal(stored_pixels(stored.content, "rgb"), pixels)
    assert stored.content[-pixels.size :] == pixels.tobytes()
    assert stored.rewritten is None


def test_pixels_can_be_stored_as_jpeg() -> None:
    stored = store(make_pixels(height=32, width=32), "jpeg", None)
    assert simplejpeg.decode_jpeg_header(stored.content) == (32, 32, "YCbCr", "444")
    assert error_of(stored.pixels, Image.fromarray(make_pixels(height=32, width=32))) < 3


def test_both_encodings_store_the_same_pixels_of_an_honest_jpeg() -> None:
    pixels = [store(jpeg(), encoding, None).pixels for encoding in ENCODINGS]
    np.testing.assert_array_equal(pixels[0], pixels[1])
