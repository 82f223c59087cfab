"""What training takes of a device's memory, found by a step that computes nothing."""

from __future__ import annotations

import dataclasses
import weakref
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.config.schema import Config
from pipeline.model.build import build_model, image_size
from pipeline.optim.precision import type_of
from pipeline.optim.replica import Replica
from pipeline.ranks.mesh import Mesh
from pipeline.ranks.world import World


def bytes_of_training(
    config: Config, num_classes: int, local_batch_size: int, world: World, mesh: Mesh
) -> dict[str, int]:
    """What a rank of `world` needs of its device's memory, in bytes, and what for.

    Start, step and evaluation are gone through as they are, on torch's fake tensors, which have
    shapes and no values: the sum is that of all tensors that are there at the worst moment. It does
    not have what libraries take for themselves. Both columns are counted, also for a rank of one.
    """
    alone = Mesh(replica=0, num_replicas=1, column=None, same_replica=None, same_column=None)
    config = dataclasses.replace(config, compile="off")  # what is fused takes no more than this
    side, device = image_size(config.model.name), world.device
    dtype = type_of(config.resolved_precision)
    block_size, views = config.evaluation.block_size, config.evaluation.views
    with FakeTensorMode() as mode, _LiveBytes(device) as live:
        # A module can be moved only if nothing remembers its tensors.
        mode.fake_tensor_converter.set_tensor_memo = lambda *_: None  # type: ignore[method-assign]
        model = build_model(config.model, num_classes, (side, side))
        model.freeze(config.init.freeze)
        replica = Replica(model, config, world, alone)
        replica.warm_up(*_batch(local_batch_size, side, dtype, device))
        begun = live.now
        _step(replica, *_batch(local_batch_size, side, dtype, device))
        held, most, live.most = live.now, live.most, live.now
        model.eval()
        with torch.no_grad():  # in inference mode less would be seen
            images, _, _ = _batch(block_size, side, torch.float32, device)
            torch.stack([model(images) for _ in range(views)])
    parameters = list(model.parameters())
    # DDP keeps gradients in buckets, and makes these anew when it has seen a pass.
    gradients = sum(one.nbytes for one in parameters if one.requires_grad)
    buckets = 0 if mesh.same_column is None else gradients
    # A checkpoint lies beside what it is copied to, tensor by tensor.
    copied = held - sum(one.grad.nbytes for one in parameters if one.grad is not None)
    most_in_start = copied + max(held, begun + max(one.nbytes for one in parameters))
    # Libraries lay out a convolution's weights and their gradient anew while it runs.
    relaid = 2 * max(one.nbytes for one in parameters if one.ndim == 4)
    return {
        "what stays from step to step": held + buckets,
        f"a pass over {local_batch_size:,} images": max(most, most_in_start) - held + relaid,
        f"an evaluation of {block_size:,} images": live.most - held + relaid,
    }


def _batch(
    count: int, side: int, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, ...]:
    """Images N×3×S×S, keys and labels."""
    images = torch.empty((count, side, side, 3), dtype=dtype, device=device).permute(0, 3, 1, 2)
    keys, labels = torch.zeros((2, count), dtype=torch.int64, device=device)
    return images, keys, labels


def _step(replica: Replica, images: torch.Tensor, keys: torch.Tensor, labels: torch.Tensor) -> None:
    replica.add_gradients(images, keys, labels, step_samples=len(images), is_last=True)
    replica.update(wants_norm=True)


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that are made in the block and still there.

    What an operation takes while it runs, and gives back, is not seen.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._device_type = device.type
        self._counted: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self.now = 0
        self.most = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if not func._schema.returns:
            return None  # it only changes values, as an update does, and there are none
        result = func(*args, **(kwargs or {}))
        for part in tree_leaves(result):
            if isinstance(part, torch.Tensor) and part.device.type == self._device_type:
                self._count(part.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        place, num_bytes = id(storage), storage.nbytes()
        if place in self._counted:
            return

        def free(_: object) -> None:
            del self._counted[place]
            self.now -= num_bytes

        self._counted[place] = weakref.ref(storage, free)
        self.now += num_bytes
        self.most = max(self.most, self.now)
