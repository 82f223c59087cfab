"""Text of others, as it may stand in a model card: as Markdown, and in its front matter."""

from __future__ import annotations

import json
import re

from data_prep.shard_set.files import printable


def prose(text: str) -> str:
    """Text of others within a line of Markdown: no HTML, link or other markup comes of it."""
    return re.sub(r"[\\`*\[\]<>&$|~]", lambda found: f"&#{ord(found[0])};", printable(text))


def code(text: str) -> str:
    """Text of others as Markdown's code, whatever backticks it has."""
    text = printable(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{text}{fence}" if text.strip("`") == text != "" else f"{fence} {text} {fence}"


def quoted(text: str) -> str:
    return json.dumps(printable(text), ensure_ascii=False)
