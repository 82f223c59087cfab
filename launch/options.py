"""Where the options of a launcher stand, the command behind them, and the file that it writes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data_prep.shard_set.files import expanded, write_atomically
from data_prep.shard_set.options import add_options, option_fields, option_of
from data_prep.shard_set.streams import say
from pipeline.config.order import Surroundings
from pipeline.run.measured import check_run
from pipeline.train.command import Command


def add_kind(
    kinds: argparse._SubParsersAction[Any],
    name: str,
    command: str,
    text: str,
    specs: Sequence[type],
    **defaults: Callable[..., Any],
) -> None:
    """Add the kind of jobs that `text`, with the options of `specs` before a `command`.

    The parsed namespace has these two, the `program` that was called, and the `defaults`.
    """
    kind = kinds.add_parser(name, help=text)
    kind.usage = f"{kind.prog} [OPTIONS] {command}"
    kind.description = (
        f"Jobs that {text}. Options come before the command, whose own options follow it."
    )
    add_options(kind, *specs)
    kind.add_argument("command", nargs=argparse.REMAINDER, metavar=command)
    kind.set_defaults(program=kind.prog, specs=specs, **defaults)


def write_own(path: Path, text: str, option: str) -> None:
    """Write the file that an option names, or replace one that begins with the same line.

    Raises `OSError` if somebody else wrote it, or its folder is missing.
    """
    first_line = text.splitlines()[0]
    if path.exists() and not path.read_text(errors="replace").startswith(first_line):
        raise FileExistsError(
            f"{path} was not written by this command: move it or give another {option}"
        )
    if not path.parent.is_dir():
        raise NotADirectoryError(f"{path.parent} is not a directory: give another {option}")
    write_atomically(path, text.encode())


def refuse_misplaced(program: str, kinds: Sequence[type], command: Sequence[str]) -> None:
    """Raise `ValueError` if an option of these dataclasses, of `program`, is in a command."""
    own = {option_of(field) for field in option_fields(*kinds)}
    for word in command[1:]:
        name = word.partition("=")[0].replace("_", "-")
        if name in own or name.replace("--no-", "--") in own:
            raise ValueError(
                f"{name} is an option of the launcher, and comes before {command[0]}: "
                f"{program} {name} … {command[0]} …"
            )


def refuse_script_options(conversion: Sequence[str]) -> None:
    """Raise `ValueError` if a part of a conversion is named, which differs from job to job."""
    for word in conversion:
        if word.partition("=")[0] in ("--num-tasks", "--task", "--workers"):
            raise ValueError(
                f"{word} is for the script to give, to each job of the array: leave it out"
            )


def paths_of(command: Command) -> dict[str, Path]:
    """The files and folders of a training that all its nodes must see, by their options."""
    paths = {"--run-dir": command.run.path}
    if command.fork_from is not None:
        paths["--fork-from"] = command.fork_from.run.path
    if command.config.init.weights:
        paths["--init"] = Path(command.config.init.weights)
    if not command.config.data.is_remote:
        paths["--data.shards"] = Path(command.config.data.shards)
    return paths


def without_tilde(arguments: Sequence[str]) -> list[str]:
    """The arguments with a leading `~` as the home directory that it is on this host.

    On a node, or in a container, it could be another one.
    """
    words = []
    for word in arguments:
        name, sign, value = word.partition("=") if word.startswith("--") else ("", "", word)
        words.append(f"{name}{sign}{expanded(value)}")
    return words


def parse_sharding(words: list[str]) -> argparse.Namespace:
    """What a command of `data_prep` asks for; exits with its usage if it is not as that says."""
    from data_prep.__main__ import parse  # here: all sources take longer than the rest of launch

    return parse(words)


def warn_of_waits(command: Command, around: Surroundings) -> None:
    """Say which waits of a training may contradict each other; raises `ValueError` if they do."""
    for warning in check_run(command.config, command.run, around):
        say(f"warning: {warning}", stream=sys.stderr)
