"""DeepSpeed ZeRO's partitions put together, and taken apart again for any number of processes and any stage.

So a state has one form, whoever trained: whole float32 tensors by parameter. All processes call these functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from trainer.distributed import Engine

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's tensors of a parameter's shape; with them goes ``step``, a scalar."""
Tensors = dict[str, torch.Tensor]


def weights(engine: Engine) -> Tensors:
    """The model's state dict on the CPU of rank 0; empty on other ranks. Float32 whatever DeepSpeed computes with: what
    learns from its master weights, and what has not moved as it was before DeepSpeed rounded it."""
    from deepspeed.utils import safe_get_full_fp32_param

    main = engine.accelerator.is_main_process
    gathered = engine.accelerator.get_state_dict(engine.model)
    model = {name: tensor.detach().cpu() for name, tensor in gathered.items()} if main else {}
    model |= {name: _unrounded(model[name], initial) for name, initial in engine.initial.items()}
    for name, parameter in engine.parameters.items():
        master = safe_get_full_fp32_param(parameter)
        if main:
            model[name] = master.cpu()
    return model


def _unrounded(now: torch.Tensor, initial: torch.Tensor) -> torch.Tensor:
    return initial if torch.equal(initial.to(now.dtype), now) else now.to(initial.dtype)


def consolidate(engine: Engine) -> tuple[Tensors, Tensors]:
    """``weights`` and the optimizer's tensors as ``PARAMETER.KEY``, on the CPU of rank 0; empty on other ranks."""
    from deepspeed.utils import safe_get_full_optimizer_state

    model, optimizer = weights(engine), {}
    _link(engine)
    step = next(state["step"] for state in _base(engine).state.values())
    for name, parameter in engine.parameters.items():
        moments = {key: safe_get_full_optimizer_state(parameter, key) for key in MOMENTS}
        if engine.accelerator.is_main_process:
            optimizer |= {f"{name}.{key}": tensor.cpu() for key, tensor in moments.items()}
            optimizer[f"{name}.step"] = torch.as_tensor(step).cpu().clone()
    return model, optimizer


def restore(engine: Engine, model: Tensors, optimizer: Tensors) -> None:
    """Set weights, master weights and optimizer state from whole tensors, which every process has."""
    from deepspeed.utils import (
        safe_set_full_fp32_param,
        safe_set_full_optimizer_state,
        safe_set_local_fp32_param,
        safe_set_local_optimizer_state,
    )

    if engine.stage == 3:
        _load_partitioned(engine, model)
    else:
        engine.module.load_state_dict(model)
    _allocate(engine, next(tensor for name, tensor in optimizer.items() if name.endswith(".step")))
    _link(engine)
    for name, parameter in engine.parameters.items():
        master = model[name].float()
        moments = {key: optimizer[f"{name}.{key}"] for key in MOMENTS}
        if engine.stage == 3:
            safe_set_local_fp32_param(parameter, _part(engine, parameter, master))
            for key, moment in moments.items():
                safe_set_local_optimizer_state(parameter, _part(engine, parameter, moment), key)
        else:
            safe_set_full_fp32_param(parameter, master)
            for key, moment in moments.items():
                safe_set_full_optimizer_state(parameter, moment, key)


def finite_gradients(engine: Engine) -> bool:
    """Whether the averaged gradients, of which each process has a part, are finite; the same answer everywhere."""
    return not engine.model.optimizer.has_overflow()


def _base(engine: Engine) -> torch.optim.Optimizer:
    """The torch optimizer inside DeepSpeed's, whose parameters are flat partitions."""
    return engine.model.optimizer.optimizer


def _allocate(engine: Engine, step: torch.Tensor) -> None:
    """Give AdamW the state that it would make itself in its first update."""
    zero = engine.model.optimizer
    flat = zero.fp32_partitioned_groups_flat if engine.stage == 3 else zero.single_partition_of_fp32_groups
    for partition in flat:
        moments = {key: torch.zeros_like(partition, requires_grad=False) for key in MOMENTS}
        _base(engine).state[partition] = {"step": step.clone(), **moments}


def _link(engine: Engine) -> None:
    """Let parameters know their parts of the optimizer's state. DeepSpeed (0.19) itself does so too early: after the
    first group's first update, when the other groups have no state yet."""
    from deepspeed.utils import lazy_init_hp_params_optimizer_state

    if engine.stage < 3:
        zero = engine.model.optimizer
        for parameters, flat in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
            lazy_init_hp_params_optimizer_state(parameters, flat, _base(engine).state)


def _load_partitioned(engine: Engine, model: Tensors) -> None:
    """``load_state_dict`` for weights that lie in parts on all processes."""
    from deepspeed.runtime.zero import GatheredParameters

    main = engine.accelerator.is_main_process
    with torch.no_grad():
        for name, parameter in engine.module.named_parameters():
            with GatheredParameters([parameter], modifier_rank=0):
                if main:
                    parameter.copy_(model[name])
        for name, buffer in engine.module.named_buffers():
            if name in model:
                buffer.copy_(model[name])


def _part(engine: Engine, parameter: torch.nn.Parameter, whole: torch.Tensor) -> torch.Tensor:
    """This process's part of a parameter's values under ZeRO-3: equal parts, the last one filled up with zeros."""
    size, rank, world = parameter.ds_tensor.numel(), engine.accelerator.process_index, engine.accelerator.num_processes
    padded = torch.nn.functional.pad(whole.flatten(), (0, size * world - whole.numel()))
    return padded[rank * size : (rank + 1) * size].to(parameter.ds_tensor.device)
