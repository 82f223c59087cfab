"""What `--help` says of the fields of a config."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from data_prep.shard_set.fields import Field, Limit, summary_of
from data_prep.shard_set.options import Named
from pipeline.config.command_line import close_to
from pipeline.config.marks import OR_NONE, PerHost, describe_needs, show
from pipeline.config.schema import FIELDS, Config, idle_fields, is_operational, values_of

_WIDTH = 100
_INDENT = " " * 8


def outline(config: Config) -> str:
    """The fields that have an effect in `config`, and their values: a paragraph for each group."""
    values = values_of(config)
    idle = idle_fields(values)
    groups: dict[str, list[str]] = {}
    for name, field in FIELDS.items():
        if name not in idle:
            last = name.rpartition(".")[2]
            title = f"  --{name.removesuffix(last)}…  {summary_of(field.owner)}"
            groups.setdefault(title, []).append(f"{last}\xa0{show(values[name])}")
    width = _WIDTH - len(_INDENT)
    lines = []
    for title, parts in groups.items():
        lines += [title, textwrap.indent(textwrap.fill(", ".join(parts), width), _INDENT)]
    return "\n".join(lines).replace("\xa0", " ")


def explanations(config: Config, names: Iterable[str] = FIELDS) -> str:
    """A paragraph for each of the fields, with the value that it has in `config`."""
    values = values_of(config)
    return "\n".join(
        f"  --{name} {show(values[name])}{_possible(FIELDS[name])}\n"
        f"{_INDENT}{' '.join(_sentences(FIELDS[name]))}"
        for name in names
    )


def _possible(field: Field) -> str:
    limits = [mark.expected for mark in field.marks if isinstance(mark, Limit)]
    words = " | ".join(field.choices) or ", ".join(limits)
    return f"  ({words}{OR_NONE if field.is_optional else ''})" if words else ""


def _sentences(field: Field) -> Iterable[str]:
    yield field.help
    if (named := field.mark(Named)) is not None:
        yield f"In short {named.option}."
    if PerHost in field.marks:
        yield "It may differ between hosts, and change when a run is resumed."
    elif is_operational(field.name):
        yield "It may change when a run is resumed."
    if needs := describe_needs(field):
        yield f"Only with {needs}."


def explanation(config: Config, word: str) -> str:
    """Of the field `word`, of those of the group, or of the fields that the word may mean."""
    name = word.removeprefix("--").replace("-", "_")
    names = [name] if name in FIELDS else [n for n in FIELDS if n.startswith(f"{name}.")]
    names = names or close_to(name, list(FIELDS))
    return explanations(config, names) if names else f"no field '{word}'; --help-all has them all"
