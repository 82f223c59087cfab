"""Where the options of a launcher stand, and the paths in a command that it passes on."""

from __future__ import annotations

from collections.abc import Sequence

from data_prep.shard_set.files import expanded
from data_prep.shard_set.options import option_fields, option_of


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


def without_tilde(arguments: Sequence[str]) -> list[str]:
    """The arguments with a leading `~` as the home directory that it is on this host.

    On a node, or in a container, it could be another one.
    """
    words = []
    for word in arguments:
        name, sign, value = word.partition("=") if word.startswith("--") else ("", "", word)
        words.append(f"{name}{sign}{expanded(value)}")
    return words
