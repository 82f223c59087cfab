"""What a checkpoint says of its run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.run.settings import saved_settings

SETTINGS = {"recipe": "x", "config": {}, "manifest_sha256": "0"}
WHOLE = {"settings": json.dumps(SETTINGS), "model": {}, "progress": {"step": 3}}


def test_a_state_says_of_which_run_it_is() -> None:
    assert saved_settings(WHOLE, Path("x")) == SETTINGS


@pytest.mark.parametrize(
    "part",
    [
        *({"settings": None}, {"settings": "[" * 700 + "]" * 700}, {"settings": "[]"}),
        *({"model": None}, {"model": [1]}, {"progress": None}, {"progress": {}}),
        *({"progress": {"step": "3"}}, {"progress": {"step": True}}, {"progress": [3]}),
    ],
)
def test_other_states_are_named(part: dict[str, Any]) -> None:
    for state in (WHOLE | part, {name: WHOLE[name] for name in WHOLE.keys() - part.keys()}):
        with pytest.raises(ValueError, match=r"x is not the checkpoint of a run|x is damaged"):
            saved_settings(state, Path("x"))
