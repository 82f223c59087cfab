"""A command line whose options are given whole and once: what else there is, is named."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

from data_prep.shard_set.fields import did_you_mean


class Parser(argparse.ArgumentParser):
    """Refuses a misspelt option, with the one that was meant, before it misses any."""

    def __init__(self, **how: Any) -> None:
        super().__init__(allow_abbrev=False, **how)
        self._texts: list[tuple[object, str, Callable[[], str]]] = []

    def explain(self, thing: object, attribute: str, text: Callable[[], str]) -> None:
        """Let the attribute be the text when help is asked for: it is read from the source."""
        self._texts.append((thing, attribute, text))

    def format_help(self) -> str:
        for thing, attribute, text in self._texts:
            setattr(thing, attribute, text())
        return super().format_help()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = sys.argv[1:] if args is None else list(args)
        if self._subparsers is None:  # else the options are those of its commands
            self._refuse_unknown(words)
        return super().parse_known_args(words, namespace)

    def _refuse_unknown(self, words: Sequence[str]) -> None:
        """Of the words before those of another command."""
        rest, known, given = list(words), self._option_string_actions, set()
        takes_rest = any(action.nargs == argparse.REMAINDER for action in self._actions)
        while rest:
            name, has_value, _ = rest.pop(0).partition("=")
            if name == "--" or (takes_rest and not name.startswith("-")):
                return
            if not name.startswith("--"):
                continue
            if name not in known:
                hint = did_you_mean(name, known, before="; ")
                hint = hint or ("; those of the command come behind it" if takes_rest else "")
                self.error(f"unknown option {name}{hint}")
            if name in given and not isinstance(known[name], argparse._AppendAction):
                self.error(f"{name} is given twice: leave one out")
            given.add(name)
            if known[name].nargs is None and not has_value:
                del rest[:1]
