"""From a training file to a trained checkpoint."""

from __future__ import annotations

from mindpangu import runtime
from mindpangu.train.config import TrainConfig


def run(config: TrainConfig) -> None:
    """Train what `config` says, resuming where an earlier run stopped.

    Raises:
        UserError: for anything a user can mend; see the tasks and `loop.fit`.
    """
    runtime.start(config.context.device_target)
    import mindspore

    from mindpangu.train.loop import Task, fit

    mindspore.set_seed(config.context.seed)
    task: Task
    if config.vae is not None:
        from mindpangu.train.vae import TrainVAE

        task = TrainVAE(config)
    elif config.clip is not None:
        from mindpangu.train.clip import TrainClip

        task = TrainClip(config)
    elif config.bridge is not None:
        from mindpangu.train.bridge import TrainBridge

        task = TrainBridge(config)
    elif config.diffusion is not None and config.diffusion.control is not None:
        from mindpangu.train.control import TrainControl

        task = TrainControl(config)
    else:
        from mindpangu.train.diffusion import TrainDiffusion

        task = TrainDiffusion(config)
    fit(task, config)
