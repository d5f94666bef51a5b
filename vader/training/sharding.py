"""Divided weights (`fully_shard`, FSDP2): a rank holds a part of each, and gathers a block when it runs.

Tensors that leave the group are whole (`whole`), and tensors that enter it are divided again (`load_module`,
`shape_moments`). So checkpoints are those of DDP, and a run may go on with either. A network is built whole before it
is divided.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def shard(module: nn.Module) -> nn.Module:
    """Divide a module, in place, along the first dimension of its parameters; gradients are sums over ranks.

    What its lists of modules hold is gathered by itself, and so are the parameters outside of lists. Parts have no
    strides of channels_last_3d, so these are given to the inputs of convolutions (and dropout draws in their order).
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard  # seconds to import

    # by default it would be of GPUs, where there are any
    mesh = init_device_mesh(next(module.parameters()).device.type, (dist.get_world_size(),))
    for parameter in module.parameters():
        parameter.data = parameter.data.contiguous()  # other ones cannot be divided
    for convolution in (m for m in module.modules() if isinstance(m, nn.Conv3d)):
        convolution.register_forward_pre_hook(_channels_last)
    lists = [m for m in module.modules() if isinstance(m, nn.ModuleList)]
    blocks = [m for m in itertools.chain(*reversed(lists)) if not isinstance(m, nn.ModuleList)]
    for part in (*blocks, module):
        fully_shard(part, mesh=mesh)
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)  # gloo knows no average, nor a sum that divides
    return module


def _channels_last(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (inputs[0].contiguous(memory_format=torch.channels_last_3d),)


def local(tensors: Iterable[Tensor]) -> list[Tensor]:
    """This rank's parts of divided tensors, sharing their memory; other tensors as they are, empty parts left out."""
    parts = (x.to_local() if _is_divided(x) else x for x in tensors)
    return [x for x in parts if x.numel()]


def whole(content: Any) -> Any:
    """Nested dictionaries and lists with their divided tensors gathered. All ranks have to call it together."""
    if isinstance(content, dict):
        return {name: whole(value) for name, value in content.items()}
    if isinstance(content, list):
        return [whole(value) for value in content]
    return content.full_tensor() if _is_divided(content) else content


def load_module(module: nn.Module, state: dict[str, Tensor]) -> None:
    """`module.load_state_dict` of whole tensors, of which a divided module keeps its parts. Raises as that does."""
    own = module.state_dict()
    module.load_state_dict({name: _divided(value, own.get(name)) for name, value in state.items()})


def shape_moments(optimizer: torch.optim.Optimizer) -> None:
    """After whole ones were loaded: a rank keeps its parts of divided moments, and others get their weights' strides.

    (Fused Adam takes equal strides for granted; those of a checkpoint are of the ranks that wrote it.)
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if not isinstance(value, Tensor):  # RAdam and others count their steps in a plain number
                continue
            if value.shape == parameter.shape and _is_divided(parameter):
                state[name] = _divided(value.contiguous(), parameter)
            elif value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter).copy_(value)


def _is_divided(value: Any) -> bool:
    return hasattr(value, "full_tensor")  # a DTensor, whose class takes seconds to import


def _divided(value: Tensor, like: Tensor | None) -> Tensor:
    if not _is_divided(like) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
