"""One process or many: the only code that builds an Accelerator, and what differs between DDP and DeepSpeed.

Accelerate falls back to fewer processes or to plain DDP without a word when its environment is incomplete. Everything
asked for is therefore checked here after the fact.
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from data_shards.command import InputError
from trainer import zero
from trainer.config import FinetuneConfig

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")
WAIT = timedelta(hours=12)
"""How long processes wait for each other. Rank 0 alone may extract features or fetch weights for hours, which torch's
10 minutes (NCCL) or 30 (gloo) would kill. A process that dies is not waited for: launchers then end the others."""


class LaunchError(RuntimeError):
    """The processes that run are not the ones that were asked for."""


def build_accelerator(config: FinetuneConfig) -> Accelerator:
    """The Accelerator for ``config`` in this process, with the world it must have.

    On machines without CUDA, DDP needs ``cpu=True``, and DeepSpeed needs gloo named and ``cpu`` left alone; otherwise
    Accelerate gives each process a world of its own, or plain DDP. Mixed precision is ours (Engine), not Accelerate's.
    """
    from accelerate import Accelerator, DeepSpeedPlugin
    from accelerate.utils import InitProcessGroupKwargs

    world = int(os.environ.get("WORLD_SIZE", "1"))
    rank_batch = config.rank_batch(world)
    on_gpu = torch.cuda.is_available()
    backend = {} if on_gpu or config.deepspeed_stage == 0 else {"backend": "gloo"}
    group = InitProcessGroupKwargs(timeout=WAIT, **backend)
    if config.deepspeed_stage == 0:
        accelerator = Accelerator(cpu=not on_gpu, mixed_precision="no", kwargs_handlers=[group])
    else:
        if "LOCAL_RANK" not in os.environ:
            raise InputError("DeepSpeed needs a launcher, also for one process: use python -m trainer.launch")
        plugin = DeepSpeedPlugin(hf_ds_config=deepspeed_config(config, rank_batch), zero3_init_flag=False)
        accelerator = Accelerator(
            deepspeed_plugin=plugin,
            mixed_precision="bf16" if config.precision == "bf16" else "no",
            gradient_accumulation_steps=config.accumulation,
            kwargs_handlers=[group],
        )
    expected = config.processes or world
    if accelerator.num_processes != world or world != expected:
        raise LaunchError(
            f"{accelerator.num_processes} processes work together, WORLD_SIZE is {world}, {expected} were asked for; "
            "launch with: python -m trainer.launch"
        )
    return accelerator


def deepspeed_config(config: FinetuneConfig, rank_batch: int) -> dict[str, Any]:
    """DeepSpeed's dict, generated from ours: every number is an integer of ours, nothing is left to ``auto``."""
    zero: dict[str, Any] = {"stage": config.deepspeed_stage}
    if config.deepspeed_stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    if config.deepspeed_offload:
        zero["offload_optimizer"] = {"device": "cpu"}
        if config.deepspeed_stage == 3:
            zero["offload_param"] = {"device": "cpu"}
    types: dict[str, str] = {}
    if config.precision == "bf16":
        types["buffer_dtype"] = "bf16"  # or else batch norm's statistics stay float32 beside bfloat16 weights: refused
        if config.deepspeed_stage > 1:  # with stage 1 DeepSpeed takes another optimizer for it, unknown to zero.py
            types["grad_accum_dtype"] = "fp32"
    return {
        "train_micro_batch_size_per_gpu": rank_batch // config.accumulation,
        "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": config.clip or 0.0,
        "zero_optimization": zero,
        "bf16": {"enabled": config.precision == "bf16"},
        "data_types": types,
        "zero_allow_untested_optimizer": True,
        # With offload too, the optimizer stays ours: Accelerate would put another one in its place, which our learning
        # rates would not reach.
        "zero_force_ds_cpu_optimizer": False,
    }


class Engine:
    """A model and its optimizer, prepared for this world; DDP and DeepSpeed behind the same few methods."""

    def __init__(self, accelerator: Accelerator, config: FinetuneConfig, model: nn.Module) -> None:
        from trainer.classifier import optimizer

        self.accelerator = accelerator
        self.stage, self.precision = config.deepspeed_stage, config.precision
        self.clip, self.accumulation = config.clip, config.accumulation
        self.memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        model = model.to(memory_format=self.memory_format)
        if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
            # Batch statistics of all processes' pictures. There is no such layer on the CPU: there, each uses its own.
            # timm's conversion, since its batch norms may contain the activation, which torch's would drop.
            from timm.layers import convert_sync_batchnorm

            model = convert_sync_batchnorm(model)
        self.optimizer = optimizer(
            model,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            layer_decay=config.layer_decay,
        )
        # In the order of the optimizer's numbers; DeepSpeed puts flat partitions in their place.
        names = {parameter: name for name, parameter in model.named_parameters()}
        learning = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        self.parameters = {names[parameter]: parameter for parameter in learning}
        self.initial = self._initial(model)
        if self.stage:
            self.model, self.prepared_optimizer = accelerator.prepare(model, self.optimizer)
        else:
            self.model = accelerator.prepare(model)
        self._check()
        self.training_model = torch.compile(self.model) if config.compile else self.model
        self.ema = _moving_average(self.module, config.ema) if config.ema is not None else None

    def _initial(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """On rank 0, a copy of what has no float32 master where DeepSpeed is about to round the model to bfloat16."""
        if self.input_type is torch.float32 or not self.accelerator.is_main_process:
            return {}
        others = {name: value for name, value in model.state_dict().items() if name not in self.parameters}
        return {name: value.detach().cpu().clone() for name, value in others.items()}

    def _check(self) -> None:
        world, kind = self.accelerator.num_processes, type(self.model).__name__
        if self.stage:
            found = kind == "DeepSpeedEngine" and self.model.zero_optimization_stage()
            if found != self.stage or self.model.world_size != world:
                raise LaunchError(f"DeepSpeed ZeRO-{self.stage} on {world} processes was asked for; got {kind} {found}")
        elif (kind == "DistributedDataParallel") != (world > 1):
            raise LaunchError(f"{kind} on {world} processes is not DistributedDataParallel")

    @property
    def module(self) -> nn.Module:
        """The bare model."""
        return self.model.module if hasattr(self.model, "module") else self.model

    @property
    def judged(self) -> nn.Module:
        """The bare model that is evaluated and published: the moving average, where there is one."""
        return self.module if self.ema is None else self.ema.module

    @property
    def input_type(self) -> torch.dtype:
        return torch.bfloat16 if self.stage and self.precision == "bf16" else torch.float32

    def train(self) -> None:
        self.model.train()

    def evaluate(self) -> None:
        """Before ``score``: the model and its average in evaluation mode, without what they keep of older weights. Some
        of timm's (TinyViT, LeViT) keep their attention biases in that mode until the next change of modes, and the
        average, whose weights change in place, would see none."""
        self.module.eval()
        if self.ema is not None:
            self.ema.module.train()
            self.ema.module.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (n,), for training."""
        with self._autocast():
            return self.training_model(images)

    @torch.no_grad()
    def score(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (n,) of the judged model, after ``evaluate``. Without a collective, except under ZeRO-3,
        where all processes must make equally many calls."""
        model = self.model if self.stage == 3 else self.judged
        with self._autocast():
            return model(images)

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Gradients of one pass's mean loss; ``last`` ends the update and averages over the processes."""
        if self.stage:
            self.model.backward(loss)  # divides by the number of accumulation steps itself
            if not last:
                self.model.step()  # counts the pass; no update yet
        else:
            (loss / self.accumulation).backward()

    def accumulating(self, *, last: bool) -> contextlib.AbstractContextManager:
        """Context of a pass's forward and backward: DDP averages gradients in the last pass only."""
        if last or self.stage or self.model is self.module:
            return contextlib.nullcontext()
        return self.model.no_sync()

    def gradient_norm(self) -> torch.Tensor:
        """Clip the gradients and return their norm before that, a scalar; 0 under DeepSpeed, which clips itself."""
        if self.stage:
            return torch.zeros((), device=self.accelerator.device)
        return nn.utils.clip_grad_norm_(self.parameters.values(), math.inf if self.clip is None else self.clip)

    def finite_gradients(self) -> bool:
        """Whether the gradients are finite where ``gradient_norm`` does not tell: under DeepSpeed, a collective."""
        return not self.stage or zero.finite_gradients(self)

    def update(self, number: int) -> None:
        """Make update ``number`` of the run, counted from 1."""
        if self.stage:
            self.model.step()
        else:
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.module, number)

    def weights(self) -> dict[str, torch.Tensor]:
        """The whole state dict of the judged model, in float32; complete on rank 0. Collective under DeepSpeed."""
        return zero.weights(self) if self.stage else self.judged.state_dict()

    def share_buffers(self) -> None:
        """Give every process rank 0's buffers (batch norm statistics), which DDP does before a forward only."""
        if self.accelerator.num_processes > 1:
            averaged = self.ema.module.buffers() if self.ema is not None else ()
            for buffer in (*self.module.buffers(), *averaged):
                torch.distributed.broadcast(buffer, src=0)

    def _autocast(self) -> contextlib.AbstractContextManager:
        if self.precision == "fp32" or self.stage:
            return contextlib.nullcontext()
        return torch.autocast(self.accelerator.device.type, torch.bfloat16)


def _moving_average(model: nn.Module, decay: float) -> nn.Module:
    """timm's average of parameters and batch statistics; its warm-up is a function of the number of updates."""
    from timm.utils import ModelEmaV3

    return ModelEmaV3(model, decay=decay, use_warmup=True)


def on_rank_zero(accelerator: Accelerator, function: Callable[[], T]) -> T:
    """Call ``function`` on rank 0 alone and return its (picklable) result everywhere; an InputError too is everyone's,
    so that no process waits for one that has left."""
    from accelerate.utils import broadcast_object_list

    answer: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            answer[0] = function()
        except InputError as error:
            answer[1] = str(error)
    broadcast_object_list(answer)
    if answer[1] is not None:
        raise InputError(answer[1])
    return answer[0]


def gather(accelerator: Accelerator, value: Any) -> list[Any]:
    """Every process's ``value``, in rank order, on every process."""
    if accelerator.num_processes == 1:
        return [value]
    values: list[Any] = [None] * accelerator.num_processes
    torch.distributed.all_gather_object(values, value)
    return values


def close(accelerator: Accelerator) -> None:
    """End the process group so that no worker thread of gloo outlives the interpreter: tensors of pending reductions
    go first, otherwise gloo may abort at exit ("terminate called without an active exception")."""
    accelerator.free_memory()
    gc.collect()
    accelerator.end_training()
