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
from mindpangu.train.config import TrainConfig
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
    """`training`: one of our training files; `overrides`: "key=value" over it."""

    model_type = "pangu_draw"

    def __init__(self, training: str = "", overrides: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.training, self.overrides = training, list(overrides)


@MindFormerRegister.register(MindFormerModuleType.MODELS)
class PanGuDrawForTraining(PreTrainedModel):
    """construct(*columns of `PanGuDrawDataset`) -> loss, a scalar: any of our tasks."""

    config_class = PanGuDrawConfig
    base_model_prefix = "loss_net"

    def __init__(self, config: PanGuDrawConfig) -> None:
        super().__init__(config, auto_prefix=False)
        self.task, _ = task_of(config.training, config.overrides)
        self.loss_net = self.task.loss_net

    def construct(self, *columns: Tensor) -> Tensor:
        return self.loss_net(*columns)


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
