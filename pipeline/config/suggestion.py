"""Which option was meant by one that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence

from data_prep.shard_set.options import option_of
from pipeline.config.run_options import RUN_OPTIONS
from pipeline.config.schema import FIELDS

RUN_WORDS = [option_of(field).removeprefix("--") for field in RUN_OPTIONS.values()]
"""The options of `RunOptions` without their hyphens."""

_MOST = 3

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
    "pretrained": "fork-from",
    "init_from": "fork-from",
}
"""What other programs call these options."""


def suggestion(name: str) -> str:
    """'did you mean --…? ' for an option without its hyphens, or nothing."""
    close = close_to(name, [*FIELDS, *RUN_WORDS])
    return f"did you mean {' or '.join(f'--{other}' for other in close)}? " if close else ""


def close_to(name: str, known: Sequence[str]) -> list[str]:
    """By the last part alone, its words, their initials or another usual name, then by letters.

    Of several the ones in the group that was named.
    """
    group, _, last = name.rpartition(".")
    rules: tuple[Callable[[list[str]], bool], ...] = (
        lambda words: "_".join(words).rstrip("s") == last.rstrip("s"),
        lambda words: f"_{last}_" in f"_{'_'.join(words)}_",
        lambda words: len(last) > 1 and "".join(word[0] for word in words).endswith(last),
    )
    for matches in rules:
        found = [other for other in known if matches(_words(other))]
        if found:
            named = [other for other in found if group and other.startswith(f"{group}.")]
            return (named or found)[:_MOST]
    if last in _SYNONYMS and _SYNONYMS[last] in known:
        return [_SYNONYMS[last]]
    return difflib.get_close_matches(name, known, n=2, cutoff=0.7)


def _words(name: str) -> list[str]:
    return name.split(".")[-1].replace("-", "_").split("_")
