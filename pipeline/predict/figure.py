"""The figure: each image beside bars of its most probable classes, as a PNG or one HTML page."""

from __future__ import annotations

import base64
import html
import importlib.util
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from data_prep.shard_set.files import printable
from data_prep.shard_set.pixels import Pixels
from pipeline.predict.answers import Answer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_IMAGES = 48
"""More are left out."""
_THUMB_PIXELS = 320
_RIGHT, _OTHER, _INK, _SOFT = "#0b69ad", "#a7afb7", "#1d2227", "#59626b"
_NAME_LETTERS, _HEADING_LETTERS = 26, 44
_CARD_INCHES, _PICTURE_INCHES, _BAR_INCHES = 6.4, 1.9, 0.24

Shown = tuple[Answer, Pixels]
"""An answer, and the picture that it is of, uint8 H×W×3."""


def check_target(path: Path) -> None:
    """Raise `ValueError` or `OSError` if no figure can be written to `path`."""
    if path.suffix not in (".png", ".html"):
        raise ValueError(f"--figure {path}; expected a name that ends in .png or .html")
    if not path.parent.is_dir():
        raise ValueError(f"--figure {path}: {path.parent} is no folder; make it first")
    if path.exists() and not path.is_file():  # a rename would replace even a device
        raise ValueError(f"--figure {path} is not a regular file; give another name")
    if path.suffix == ".png" and importlib.util.find_spec("matplotlib") is None:
        raise ValueError(
            "--figure as .png needs matplotlib: pip install 'alexnet-2012[report]', or give a name "
            "that ends in .html"
        )


def draw(path: Path, shown: Sequence[Shown], top: int, title: str) -> bytes:
    """The content of the file at `path`, which `check_target` has taken."""
    return _page(shown, top, title).encode() if path.suffix == ".html" else _png(shown, top, title)


def _bars(answer: Answer, top: int) -> list[tuple[str, float, bool]]:
    """Name, probability and whether it is the right one, of each class."""
    prediction = answer.prediction
    return [
        (
            printable(prediction.class_names[label]),
            float(prediction.probabilities[label]),
            label == answer.label,
        )
        for label in answer.labels(top)
    ]


def _cut(text: str, letters: int) -> str:
    return text if len(text) <= letters else f"{text[: letters - 1]}…"


def _png(shown: Sequence[Shown], top: int, title: str) -> bytes:
    from matplotlib.figure import Figure

    num_columns = 1 if len(shown) < 3 else 2
    num_bars = min(top, len(shown[0][0].prediction.class_names))
    row_inches = max(1.75, 0.55 + _BAR_INCHES * num_bars)
    width = _CARD_INCHES * num_columns
    height = 0.55 + row_inches * -(-len(shown) // num_columns)
    figure = Figure(figsize=(width, height), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))  # one for all, in inches from the top: many take long
    axes.set_axis_off()
    axes.text(0.16, 0.3, title, fontsize=11, color=_SOFT, va="center", parse_math=False)
    for number, (answer, pixels) in enumerate(shown):
        row, column = divmod(number, num_columns)
        left, upper = 0.16 + _CARD_INCHES * column, 0.55 + row_inches * row
        scale = min(_PICTURE_INCHES / pixels.shape[1], (row_inches - 0.25) / pixels.shape[0])
        right, lower = left + scale * pixels.shape[1], upper + scale * pixels.shape[0]
        smoothing = "nearest" if _is_small(pixels) else "antialiased"
        axes.imshow(pixels, extent=(left, right, lower, upper), interpolation=smoothing)
        _draw_bars(axes, left + _PICTURE_INCHES + 0.12, upper, answer, top)
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="auto")
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that the font does not have
        figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def _draw_bars(axes: Axes, left: float, upper: float, answer: Answer, top: int) -> None:
    how: dict[str, Any] = {"va": "center", "fontsize": 9, "color": _INK, "parse_math": False}
    heading = _cut(_heading(answer), _HEADING_LETTERS)
    axes.text(left, upper + 0.08, heading, weight="bold", **how)
    for number, (name, share, is_right) in enumerate(_bars(answer, top)):
        start, middle = left + 2, upper + 0.36 + _BAR_INCHES * number
        text = _cut(f"✓ {name}" if is_right else name, _NAME_LETTERS)
        axes.text(start - 0.07, middle, text, ha="right", **how)
        color = _RIGHT if is_right else _OTHER
        axes.barh(middle, 1.5 * share, 0.66 * _BAR_INCHES, left=start, color=color)
        axes.text(start + 1.5 * share + 0.06, middle, f"{share:.1%}", **how)


def _is_small(pixels: Pixels) -> bool:
    """So small that its pixels may be seen."""
    return len(pixels) < 100 and len(pixels[0]) < 100


def _heading(answer: Answer) -> str:
    return printable(Path(answer.name).name)


_STYLE = """
:root{color-scheme:light dark;--page:#faf9f6;--card:#fff;--ink:#1d2227;--soft:#59626b;
--rule:#e4e1da;--right:#0b69ad;--bar:#a7afb7;--track:#f1efea}
@media(prefers-color-scheme:dark){:root{--page:#131619;--card:#1a1e22;--ink:#e9e7e2;
--soft:#a0a9b2;--rule:#2e343a;--right:#5fb0ec;--bar:#66717b;--track:#23282d}}
*{box-sizing:border-box}
body{margin:0;padding:40px clamp(16px,4vw,48px);background:var(--page);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Arial,sans-serif;font-variant-numeric:tabular-nums}
main{max-width:1180px;margin:auto}
h1{font-size:1.5rem;line-height:1.25;margin:0;overflow-wrap:anywhere}
.soft{color:var(--soft);margin:4px 0 0}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(440px,100%),1fr));gap:18px;
margin-top:24px}
figure{display:grid;align-content:start;align-items:start;
grid-template-columns:minmax(96px,34%) minmax(0,1fr);gap:10px 18px;margin:0;
padding:16px;background:var(--card);border:1px solid var(--rule);border-radius:10px}
img{width:100%;border-radius:4px;display:block}
.small{image-rendering:pixelated}
figcaption{font-weight:600;font-size:.9rem;overflow-wrap:anywhere;grid-column:1/-1}
ul{list-style:none;margin:0;padding:0}
li{display:grid;grid-template-columns:minmax(0,1fr) auto;column-gap:10px;margin-bottom:7px;
font-size:.875rem;line-height:1.3}
.name{overflow-wrap:anywhere}
.value{color:var(--soft)}
.track{grid-column:1/-1;height:7px;margin-top:3px;border-radius:2px;background:var(--track)}
.track span{display:block;height:100%;min-width:1px;border-radius:2px;background:var(--bar)}
.right .name{font-weight:600}
.right .track span{background:var(--right)}
"""


def _page(shown: Sequence[Shown], top: int, title: str) -> str:
    cards = "".join(_card(answer, pixels, top) for answer, pixels in shown)
    count = f"{len(shown)} image{'' if len(shown) == 1 else 's'}"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "img-src data:; style-src 'unsafe-inline'\">"
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body><main>"
        f'<h1>{html.escape(title)}</h1><p class="soft">{count}, each with its most probable '
        f'classes</p><div class="cards">{cards}</div></main></body></html>\n'
    )


def _card(answer: Answer, pixels: Pixels, top: int) -> str:
    rows = "".join(
        f'<li{" class=right" if is_right else ""}><span class="name">{"✓ " if is_right else ""}'
        f'{html.escape(name)}</span><span class="value">{share:.1%}</span><span class="track" '
        f'aria-hidden="true"><span style="width:{share:.2%}"></span></span></li>'
        for name, share, is_right in _bars(answer, top)
    )
    heading = html.escape(_heading(answer))
    image = Image.fromarray(pixels)
    small = _is_small(pixels)
    image.thumbnail((_THUMB_PIXELS, _THUMB_PIXELS))
    buffer = io.BytesIO()
    image.save(buffer, "PNG" if small else "JPEG", quality=88)
    kind = "png" if small else "jpeg"
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f"<figure><figcaption>{heading}</figcaption>"
        f'<img alt="{heading}"{" class=small" if small else ""} '
        f'src="data:image/{kind};base64,{data}"><ul>{rows}</ul></figure>'
    )
