"""Our nets and data in MindFormers' register (the extra `train`), for those who launch trainings with it.

REGISTER_PATH names the folder of this file, and `auto_register` in the YAML its classes: docs/mindformers.md. What is
trained is said by one of our own training files, `training`; MindFormers brings its optimizers, learning-rate
schedules, wrappers, callbacks and parallel strategies.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from mindformers.models import PretrainedConfig, PreTrainedModel
from mindformers.tools.register import MindFormerModuleType, MindFormerRegister
from mindspore import Tensor
from mindspore.dataset import GeneratorDataset

from mindpangu import runtime
from mindpangu.config import load
from mindpangu.errors import UserError
from mindpangu.images import parse_size
from mindpangu.models.stages import assign_stages
from mindpangu.parallel.pipeline import cut
from mindpangu.train.config import TrainConfig
from mindpangu.train.control import TrainControl
from mindpangu.train.diffusion import TrainDiffusion, text_encoder_specs
from mindpangu.train.plan import blocks, training_flops
from mindpangu.train.run import make_task

if TYPE_CHECKING:
    from mindpangu.train.loop import Task


def task_of(training: str, overrides: Sequence[str]) -> tuple[Task, TrainConfig]:
    """What a training file trains, begun from its `load_checkpoint`. Raises: UserError."""
    runtime.start()
    config = load(Path(training), TrainConfig, overrides)
    task = make_task(config)
    if config.load_checkpoint is not None:
        task.start_from(config.load_checkpoint)
    return task, config


@MindFormerRegister.register(MindFormerModuleType.CONFIG)
class PanGuDrawConfig(PretrainedConfig):
    """`training`: one of our training files; `overrides`: "key=value" over it.

    `pipeline_stage`: as in `parallel_config`: into how many stages of MindSpore's own pipeline, which Ascend alone has,
    the UNet is cut, where their FLOPs are even. MindFormers' wrappers drive it.
    """

    model_type = "pangu_draw"

    def __init__(
        self, training: str = "", overrides: Sequence[str] = (), pipeline_stage: int = 1, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.training, self.overrides, self.pipeline_stage = training, list(overrides), pipeline_stage


@MindFormerRegister.register(MindFormerModuleType.MODELS)
class PanGuDrawForTraining(PreTrainedModel):
    """construct(*columns of `PanGuDrawDataset`) -> loss, a scalar: any of our tasks."""

    config_class = PanGuDrawConfig
    base_model_prefix = "loss_net"

    def __init__(self, config: PanGuDrawConfig) -> None:
        super().__init__(config, auto_prefix=False)
        self.task, _ = task_of(config.training, config.overrides)
        self.loss_net = self.task.loss_net
        if config.pipeline_stage > 1:
            cut_for_pipeline(self.task, config.pipeline_stage)

    def construct(self, *columns: Tensor) -> Tensor:
        return self.loss_net(*columns)


def cut_for_pipeline(task: Task, stages: int) -> None:
    """Tell MindSpore which stage each Cell of a generator's training belongs to; the text encoders are the first's.

    Raises:
        UserError: what is trained is no generator, or has fewer pieces than that.
    """
    if not isinstance(task, TrainDiffusion) or isinstance(task, TrainControl):
        raise UserError(f"pipeline_stage {stages}: only generators are cut into stages")
    spec, side = task.task.unet, parse_size(task.task.sizes[0])[0] // task.vae.spec.factor
    texts = {} if task.task.text is None else text_encoder_specs(task.task.text)
    layers = blocks(spec, 1, side, max((text.context_length for text in texts.values()), default=0))
    if stages > len(layers):
        raise UserError(f"pipeline_stage {stages}: the UNet has {len(layers)} pieces; at most as many stages")
    assign_stages(task.loss_net.unet, cut([sum(pair) for pair in training_flops(layers, False)], stages))
    if task.conditioner is not None:
        task.conditioner.pipeline_stage = 0


class Batches:
    """Batch b of a training file: images b·batch_size and on, as our own loop sees them."""

    def __init__(self, task: Task, config: TrainConfig) -> None:
        self.task, self.size = task, config.runner_config.batch_size
        self.count = config.runner_config.images // self.size

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> tuple[np.ndarray, ...]:
        return self.task.batch(int(number) * self.size, self.size)


@MindFormerRegister.register(MindFormerModuleType.DATASET)
class PanGuDrawDataset:
    """Built, it is MindSpore's data set of a training file's batches, whole and in order: one epoch is the run."""

    def __new__(cls, training: str = "", overrides: Sequence[str] = (), **_: Any) -> GeneratorDataset:
        batches = Batches(*task_of(training, overrides))
        columns = [f"column_{i}" for i in range(len(batches[0]))]
        return GeneratorDataset(batches, columns, shuffle=False, num_parallel_workers=1)
