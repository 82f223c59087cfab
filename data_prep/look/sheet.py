"""A page of images of each class, for people to look at."""

from __future__ import annotations

import base64
import html
import io

import numpy as np
from PIL import Image

from data_prep.look.look import Contents, Findings, Place, describe
from data_prep.shard_set.codec import codec_of
from data_prep.shard_set.files import printable

_SHEET_CLASSES, _SHEET_IMAGES, _THUMB_PIXELS = 100, 10, 96


def contact_sheet(found: Findings) -> str:
    """An HTML page: the text, and images of each class."""
    rows = []
    labels = found.contents.index["train"]["label"]
    names = found.contents.manifest.class_names
    for label in np.unique(labels)[:_SHEET_CLASSES].tolist():
        of_class = np.flatnonzero(labels == label)
        chosen = of_class[np.linspace(0, len(of_class) - 1, _SHEET_IMAGES).astype(int)]
        images = "".join(_thumbnail(found.contents, int(row)) for row in np.unique(chosen))
        rows.append(f"<h2>{html.escape(names[label])}</h2><p>{images}</p>")
    title = html.escape(found.contents.manifest.title)
    lines = "".join(f"{html.escape(printable(line))}\n" for line in describe(found))
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>"
        "body{font:15px/1.4 sans-serif;margin:2em auto;max-width:1100px;padding:0 1em}"
        "pre{overflow:auto;background:#f4f4f4;padding:1em}h2{font-size:1em;margin:1em 0 0}"
        "p{margin:.3em 0}img{margin:2px;vertical-align:top;min-width:48px}"
        f"</style><h1>{title}</h1><pre>{lines}</pre>"
        f"{''.join(rows)}</html>\n"
    )


def _thumbnail(contents: Contents, row: int) -> str:
    name, content = contents.read(Place("train", row))
    try:
        image = Image.fromarray(codec_of(contents.manifest.encoding).decode(content))
    except Exception:  # decoders raise anything
        return f"<span>{html.escape(name)}: damaged</span>"
    image.thumbnail((_THUMB_PIXELS, _THUMB_PIXELS))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img title="{html.escape(name)}" alt="" src="data:image/png;base64,{data}">'
