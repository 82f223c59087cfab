"""Given weights, on every rank of a new run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pipeline.config.schema import Config
from pipeline.model.build import empty_model, load_weights
from pipeline.model.network import Network
from pipeline.ranks.mesh import Mesh
from pipeline.ranks.world import World
from pipeline.trained.weights import beginning_with, read_weights


def load_given(
    model: Network, config: Config, class_names: Sequence[str], world: World, mesh: Mesh
) -> Mapping[str, Any]:
    """Put the weights that `config.init` names into the fresh `model`; what is kept of them.

    Only rank 0 reads them: they need not be on other hosts, and all ranks begin with the same.
    Fails on all ranks together if they are not there, or do not fit.
    """
    facts, tensors = dict[str, Any](), dict[str, torch.Tensor]()
    with world.fail_together():
        if world.is_main:
            given = read_weights(config.init.weights)
            beginning = beginning_with(given, config, class_names)
            tensors = beginning.tensors
            facts = {
                "source": config.init.weights,
                "path": str(given.path),
                "weights_sha256": given.sha256,
                "new_layer": beginning.new_layer,
                "why_new": beginning.why_new,
            }
    facts, names = world.broadcast_object((facts, list(tensors)))
    empty = empty_model(config.model, len(class_names)).state_dict()
    whole = {
        name: tensors[name].to(world.device)
        if world.is_main
        else torch.empty_like(empty[name], device=world.device)
        for name in names
    }
    world.broadcast_tensors(whole.values())
    load_weights(model, whole, mesh.column, fresh=facts["new_layer"])
    return facts


def sentence_of(facts: Mapping[str, Any]) -> str:
    """What the console says of what `load_given` has loaded."""
    layer, sha256 = facts["new_layer"], facts["weights_sha256"]
    begun = f"begins with the weights of {facts['path']} (sha256 {sha256[:8]}…)"
    return begun if layer is None else f"{begun}; {layer} is new, {facts['why_new']}"
