"""The environment of the reports' templates."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import jinja2
import markupsafe

from pipeline.report.inputs import Missing
from pipeline.report.summary import describe_ranks
from pipeline.report.words import percent
from pipeline.run.console import duration, utc


def environment() -> jinja2.Environment:
    """In which texts are escaped, and a name that is not given is an error."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (percent, duration, utc, label_width, breakable, describe_ranks)
    made.filters |= {function.__name__: function for function in filters}
    made.tests["missing"] = lambda part: isinstance(part, Missing)
    return made


def label_width(names: Iterable[str]) -> float:
    """Width of the longest of the names beside its bar or row, in em; longer ones are cut off."""
    return round(2.4 + 0.6 * min(max(map(len, names)), 20), 2)


def breakable(name: str) -> markupsafe.Markup:
    """A class name that may be broken after its punctuation marks, but not within a word."""
    parts = re.split(r"(?<=[_/.,;:-])(?=[^\s_/.,;:-])", name)
    return markupsafe.Markup("<wbr>").join(parts)
