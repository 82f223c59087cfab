"""The command line of training: options of a run, and `--optim.learning_rate 0.1` for its fields.

Options of a run and fields alike are declared once (`data_prep.shard_set.fields`), and a misspelt
one gets the names that may be meant.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from data_prep.shard_set.fields import at_least, fields_of
from data_prep.shard_set.options import Named, option_of
from pipeline.config.data import LOCATION
from pipeline.config.marks import OR_NONE, why_idle
from pipeline.config.schema import FIELDS, Config, config_of, values_of, with_effect


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOptions:
    """Where a run goes, how far, and where it begins."""

    run_dir: Annotated[str, Named("--run-dir", "RUN")]
    """The directory that this run's files go to; the same command goes on from what is there."""
    max_steps: Annotated[int | None, at_least(1), Named("--max-steps", "N")] = None
    """End once N steps are done in the life of the run; the schedule stays that of all epochs."""
    fork_from: Annotated[str | None, Named("--fork-from", "RUN[@CHECKPOINT]")] = None
    """Begin at a checkpoint of another run (newest, best or a step), with other options if need
    be: in its epoch, with its weights, and its optimizer's state if that fits."""


RUN_OPTIONS = fields_of(RunOptions)

RUN_WORDS = [option_of(field).removeprefix("--") for field in RUN_OPTIONS.values()]
"""The options of `RunOptions` without their hyphens."""

SHORT_FORMS = {
    option_of(field).removeprefix("--"): name
    for name, field in FIELDS.items()
    if field.mark(Named) is not None
}
"""The fields that have a second, short name on the command line, by that name."""


def parse_words(arguments: Sequence[str]) -> dict[str, Any]:
    """The values of fields by dotted name, and those of `RunOptions`. Raises `ValueError`."""
    values: dict[str, Any] = {}
    for name, text in _pairs(arguments):
        field = FIELDS.get(name) or RUN_OPTIONS.get(name)
        if field is None:
            close = close_to(name, [*FIELDS, *RUN_WORDS, *SHORT_FORMS])
            hint = f"did you mean {' or '.join(f'--{other}' for other in close)}? " if close else ""
            raise ValueError(f"unknown option --{name}; {hint}--help-all lists them all")
        label = f"--{name}" if name in FIELDS else option_of(field)
        if name in values:
            raise ValueError(f"{label} is given twice: leave one out")
        is_none = name in FIELDS and field.is_optional and text.lower() in ("none", "null")
        values[name] = None if is_none else field.read(text, label)
        field.check(values[name], label, OR_NONE)
    return values


def with_values(
    config: Config, values: Mapping[str, Any], flags: Mapping[str, str] | None = None
) -> Config:
    """A copy of `config` with these values by dotted name.

    What has no effect beside them falls back to its default, so that `alexnet_2012` can have
    another schedule. Raises `ValueError` if it is one of the `values` itself, or one cannot be.
    `flags` names the options of another command than training that give a value.
    """
    all_values = values_of(config) | dict(values)
    check_effects(values, all_values, flags)
    try:
        return config_of(with_effect(all_values))
    except ValueError as error:
        sentence = str(error)
        for name, flag in (flags or {}).items():
            sentence = sentence.replace(name, flag)
        raise ValueError(sentence) from None


def check_effects(
    names: Iterable[str], values: Mapping[str, Any], flags: Mapping[str, str] | None = None
) -> None:
    """Raise `ValueError` if one of the fields `names` has no effect beside these values."""
    for name in names:
        if (reason := why_idle(name, values, FIELDS)) is not None:
            flag = (flags or {}).get(name, f"--{name}")
            raise ValueError(f"{flag} has no effect: {reason}; leave it out")


def locations_given(arguments: Sequence[str]) -> dict[str, str]:
    """The text of each argument for a field that holds a `Location`, by dotted name."""
    return {
        name: text
        for name, text in _pairs(arguments)
        if name in FIELDS and LOCATION in FIELDS[name].marks
    }


def _pairs(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("--"):
            raise ValueError(f"unexpected argument '{argument}'; expected --FIELD VALUE")
        name, has_value, value = argument[2:].partition("=")
        if not has_value:
            if not rest or rest[0].startswith("--"):
                raise ValueError(f"--{name} has no value; expected --{name} VALUE")
            value = rest.pop(0)
        name = name.replace("-", "_")
        yield SHORT_FORMS.get(name, name), value


_SYNONYMS = {
    "optimizer": "optim.name",
    "opt": "optim.name",
    "scheduler": "schedule.name",
    "arch": "model.name",
    "amp": "precision",
    "dtype": "precision",
    "workers": "data.decode_threads",
    "num_workers": "data.decode_threads",
    "input_size": "augment.crop_pixels",
    "grad_accum": "accumulation_steps",
    "output": "run-dir",
    "output_dir": "run-dir",
    "iterations": "max-steps",
    "resume": "fork-from",
    "pretrained": "init.weights",
    "init_from": "init.weights",
    "finetune_from": "init.weights",
}
"""What other programs call these options."""


def close_to(name: str, known: Sequence[str]) -> list[str]:
    """At most three of the `known` names that `name` may mean.

    Compared are the last parts: whole, by one word, by initials, by what other programs call it,
    then by letters. Of several, those in the group that `name` has are preferred.
    """
    group, _, last = name.rpartition(".")
    rules: tuple[Callable[[list[str]], bool], ...] = (
        lambda words: "_".join(words).rstrip("s") == last.rstrip("s"),
        lambda words: f"_{last}_" in f"_{'_'.join(words)}_",
        lambda words: len(last) > 1 and "".join(word[0] for word in words).endswith(last),
    )
    for matches in rules:
        found = [other for other in known if matches(re.split("[-_]", other.rpartition(".")[2]))]
        if found:
            named = [other for other in found if group and other.startswith(f"{group}.")]
            return (named or found)[:3]
    if _SYNONYMS.get(last) in known:
        return [_SYNONYMS[last]]
    return difflib.get_close_matches(name, known, n=2, cutoff=0.7)
