"""From a training file to a trained checkpoint."""

from __future__ import annotations

import os
from contextlib import nullcontext
from typing import TYPE_CHECKING

from mindpangu import runtime
from mindpangu.checkpoint.store import only_writer
from mindpangu.errors import UserError
from mindpangu.parallel.config import ParallelConfig
from mindpangu.parallel.ranks import join
from mindpangu.train.config import TrainConfig

if TYPE_CHECKING:
    from mindpangu.train.loop import Task


def run(config: TrainConfig) -> None:
    """Train what `config` says, resuming where an earlier run stopped; under msrun, with all processes together.

    Raises:
        UserError: for anything a user can mend; see the tasks and `loop.fit`.
    """
    if config.context.compute_dtype != "auto":
        os.environ[runtime.COMPUTE_DTYPE] = config.context.compute_dtype
    device = runtime.start(config.context.device_target, config.context.max_device_memory)
    if device == "CPU" and runtime.compute_dtype() == "bf16":
        raise UserError("context.compute_dtype: MindSpore's CPU cannot add gradients in bf16; use fp16 or fp32 there")
    import mindspore

    from mindpangu.train.loop import fit

    ranks = join()
    if config.parallel_config is not None:
        check_layout(config.parallel_config, ranks.size, mindspore.get_context("device_target"))
    if ranks.size > 1 and config.clip is not None:
        raise UserError(
            "text encoders learn by comparing each picture with the whole batch, which several processes would cut: "
            "train them with one"
        )
    mindspore.set_seed(config.context.seed)
    config.output_dir.mkdir(parents=True, exist_ok=True)
    with only_writer(config.output_dir) if ranks.first else nullcontext():
        # The first process makes the caches that the others then find.
        task = make_task(config) if ranks.first else None
        ranks.wait()
        fit(task or make_task(config), config, ranks=ranks)


def check_layout(layout: ParallelConfig, processes: int, device: str) -> None:
    """Raises: UserError where the processes are too few or too many, or something is asked that is not to be had."""
    if layout.pipeline_stage > 1:
        why = "needs Ascend, and this is a CPU" if device == "CPU" else "is driven by MindFormers: docs/mindformers.md"
        raise UserError(
            f"parallel_config.pipeline_stage: MindSpore's own {why}; here, train with data_parallel and "
            "optimizer_shard, or see what it would do with `mindpangu plan`"
        )
    if layout.data_parallel != processes:
        raise UserError(
            f"parallel_config.data_parallel is {layout.data_parallel}, and {processes} processes are running; "
            f"start as many with msrun --worker_num={layout.data_parallel}"
        )


def make_task(config: TrainConfig) -> Task:
    """What a training file asks to be trained."""
    if config.vae is not None:
        from mindpangu.train.vae import TrainVAE

        return TrainVAE(config)
    if config.clip is not None:
        from mindpangu.train.clip import TrainClip

        return TrainClip(config)
    if config.text_distillation is not None:
        from mindpangu.train.text_distillation import TrainTextDistillation

        return TrainTextDistillation(config)
    if config.bridge is not None:
        from mindpangu.train.bridge import TrainBridge

        return TrainBridge(config)
    if config.diffusion is not None and config.diffusion.control is not None:
        from mindpangu.train.control import TrainControl

        return TrainControl(config)
    if config.diffusion is not None and config.diffusion.encoded is not None:
        from mindpangu.train.encoded import TrainEncoded

        return TrainEncoded(config)
    from mindpangu.train.diffusion import TrainDiffusion

    return TrainDiffusion(config)
