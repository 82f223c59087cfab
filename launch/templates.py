"""The templates of jobs beside this module, and values that mean the same wherever they stand."""

from __future__ import annotations

import json
import re
import string
from importlib import resources

_NO_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
"""What a JSON string may hold as it is, and one of YAML may not."""


class _Template(string.Template):
    """Leaves `$` to the shell and to Kubernetes."""

    delimiter = "@@"


def fill(name: str, /, **values: str) -> str:
    """The template with `values` as they are for its `@@{…}`."""
    return _Template(resources.files("launch").joinpath(name).read_text()).substitute(values)


def as_yaml(value: object) -> str:
    """The value in one line of JSON, which is YAML, too; strings stay strings.

    Raises `ValueError` for a string that is no text: a path may hold bytes that are none.
    """
    text = json.dumps(value, ensure_ascii=False)  # an escape for half a character is none of YAML
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{value!r} holds bytes that are no UTF-8: rename what it names") from None
    return _NO_YAML.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
