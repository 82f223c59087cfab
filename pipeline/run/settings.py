"""`RUN/config.json`: what a run computes, and reading it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.shard_set.manifest import MANIFEST_NAME
from data_prep.shard_set.typed import read_json
from pipeline.config.saved import differences, from_json, to_json
from pipeline.config.schema import Config
from pipeline.run.directory import RunDirectory
from pipeline.run.format_version import CONFIG_VERSION, read_versioned

_FIELDS: Mapping[str, Any] = {
    "recipe": str,
    "config": dict,
    "manifest_sha256": str,
    "forked_from": dict | None,
    "initialized_from": dict | None,
}
"""What `config.json` holds; the last two may be missing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What `config.json` says."""

    recipe: str
    config: Config
    manifest_sha256: str
    forked_from: Mapping[str, Any] | None = None
    """Of a run that began at another one's checkpoint: `source`, which `--fork-from` named, and
    the `checkpoint` that it was."""
    initialized_from: Mapping[str, Any] | None = None
    """Of a run that began with given weights: `source`, which `--init` named, the `path` that they
    were read from, their `weights_sha256`, and the `new_layer` that they were not for, if any."""

    def to_json(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe,
            "config": to_json(self.config),
            "manifest_sha256": self.manifest_sha256,
            "forked_from": self.forked_from,
            "initialized_from": self.initialized_from,
        }

    def check_continues(self, saved: Mapping[str, Any], where: Path) -> None:
        """Raise `ValueError` if what was `saved` at `where` is of a run that computes otherwise.

        The length may differ: `pipeline.train.same_run` checks that.
        """
        found = differences(self.config, saved["config"], at_any_length=True)
        if found:  # then its length is one of them
            found = differences(self.config, saved["config"])
        if found and saved["recipe"] != self.recipe:
            raise ValueError(
                f"{where} belongs to a run of the recipe {saved['recipe']}, and this one is "
                f"{self.recipe}: use another --run-dir, or {saved['recipe']} with the same options "
                "as before"
            )
        if found:
            raise ValueError(
                f"{where} belongs to a run with another configuration ({'; '.join(found)}): "
                "use another --run-dir (with --fork-from to begin at this run's weights), or the "
                "same options as before"
            )
        if saved["manifest_sha256"] != self.manifest_sha256:
            raise ValueError(
                f"{where} belongs to a run on another shard set: its {MANIFEST_NAME} had the hash "
                f"{saved['manifest_sha256'][:8]}…, that of {self.config.data.shards} has "
                f"{self.manifest_sha256[:8]}…; use another --run-dir, or the shard set as it was"
            )


def read_settings(run: RunDirectory) -> Settings:
    """Read `config.json`; raises `ValueError` if it is not there or not of this version."""
    return settings_of(read_saved(run))


def settings_of(saved: Mapping[str, Any]) -> Settings:
    """The inverse of `Settings.to_json`; raises `ValueError` if it is another version's."""
    return Settings(
        recipe=saved["recipe"],
        config=from_json(saved["config"]),
        manifest_sha256=saved["manifest_sha256"],
        forked_from=saved.get("forked_from"),
        initialized_from=saved.get("initialized_from"),
    )


def read_saved(run: RunDirectory) -> dict[str, Any]:
    """What `config.json` holds; raises `ValueError` if it is not there, damaged or too new."""
    try:
        saved = read_versioned(run.config, CONFIG_VERSION)
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(
            f"{run.path} is not a run directory: it has no {run.config.name}; "
            "give the --run-dir of a training run"
        ) from None
    return _checked(saved, run.config)


def saved_settings(state: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The same, of the run whose checkpoint at `path` has this state.

    Raises `ValueError` if it is not there or damaged, or if there are no weights or steps with it.
    """
    try:
        step, weights = state["progress"]["step"], state["model"]
        if type(step) is not int or not isinstance(weights, dict):
            raise TypeError("its step or its model is not as written")
        return _checked(read_json(state["settings"]), path)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not the checkpoint of a run, or another version's ({error}): give one that "
            "pipeline.train saved"
        ) from None


def _checked(saved: dict[str, Any], path: Path) -> dict[str, Any]:
    if not all(isinstance(saved.get(name), kind) for name, kind in _FIELDS.items()):
        raise ValueError(
            f"{path} is damaged (of {', '.join(_FIELDS)} one is missing or not of its type): "
            "restore it from a copy"
        )
    return saved
