"""MindFormers builds and runs a training of ours with its own functions; needs the extra `train`."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import yaml

from mindpangu import runtime
from tests.tiny import training

FOLDER = Path(__file__).parents[2] / "train"


@pytest.fixture()
def built(runs, tmp_path, monkeypatch):
    """Net and data set of a training file, by MindFormers' build functions from a YAML of its form."""
    for variable in ("LOG_MF_PATH", "OM_MODULES_CACHE"):  # or it writes into the folder that one stands in
        os.environ.setdefault(variable, tempfile.gettempdir())
    runtime.start("CPU")  # MindSpore first: MindFormers brings a protobuf of its own
    pytest.importorskip("mindformers", reason="the extra `train` is not installed")
    from mindformers import MindFormerConfig
    from mindformers.dataset import build_dataset
    from mindformers.models import build_network

    monkeypatch.setenv("REGISTER_PATH", str(FOLDER))
    values = training("structure", runs, output_dir=str(tmp_path / "out"))
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    text = (Path(__file__).parents[2] / "configs" / "train" / "mindformers.yaml").read_text(encoding="utf-8")
    (tmp_path / "mf.yaml").write_text(text.replace("configs/train/lora.yaml", str(tmp_path / "train.yaml")))
    config = MindFormerConfig(str(tmp_path / "mf.yaml"))
    return config, build_network(config.model), build_dataset(config.train_dataset)


def test_mindformers_builds_what_our_own_trainer_trains(built, runs, tmp_path):
    from mindpangu.config import load
    from mindpangu.train.config import TrainConfig
    from mindpangu.train.run import make_task

    _, net, data = built
    task = make_task(load(tmp_path / "train.yaml", TrainConfig))
    assert [p.name for p in net.trainable_params()] == [p.name for p in task.loss_net.trainable_params()]
    for number, columns in enumerate(data.create_tuple_iterator(output_numpy=True, num_epochs=1)):
        for one, other in zip(columns, task.batch(4 * number, 4)):
            np.testing.assert_array_equal(one, other)
    assert number == 3


def test_a_pipeline_is_cut_where_flops_are_even(built, tmp_path):
    """Every Cell of the UNet knows its stage, in order; MindFormers' wrapper itself asks for Ascend."""
    from mindformers.models import build_network
    from mindspore import nn

    from mindpangu.errors import UserError
    from mindpangu.models.stages import cells_of, pieces

    config, whole, _ = built
    config.model.model_config.pipeline_stage = 3
    net = build_network(config.model)
    unet = net.loss_net.unet
    stages = [cell.pipeline_stage for name in pieces(unet.spec) for cell in cells_of(unet, name)]
    assert stages == sorted(stages) and set(stages) == {0, 1, 2}
    assert net.loss_net.conditioner.pipeline_stage == 0
    assert [p.name for p in net.trainable_params()] == [p.name for p in whole.trainable_params()]
    assert nn.PipelineCell(net, 2).micro_size == 2  # what MindFormers puts around it
    config.model.model_config.pipeline_stage = 99
    with pytest.raises(UserError, match=r"the UNet has \d+ pieces; at most as many stages"):
        build_network(config.model)


def test_its_schedule_and_optimizer_train_the_net(built):
    """Its wrapper is built too, but asks Ascend for overflows at each step, so MindSpore's own takes the steps here."""
    from mindformers.core import build_lr, build_optim
    from mindformers.wrapper import build_wrapper
    from mindspore import nn

    config, net, data = built
    rate = build_lr(config.lr_schedule)
    optimizer = build_optim(config.optimizer, default_args={"params": net.trainable_params(), "learning_rate": rate})
    parts = {"network": net, "optimizer": optimizer, "parallel_config": config.parallel_config}
    wrapper = build_wrapper(config.runner_wrapper, default_args=parts)
    assert wrapper.network is net
    step = nn.TrainOneStepCell(net, optimizer).set_train()
    before = {p.name: p.asnumpy().copy() for p in net.trainable_params()}
    losses = [float(step(*columns).asnumpy()) for columns in data.create_tuple_iterator(num_epochs=1)]
    assert np.isfinite(losses).all()
    assert any(np.abs(p.asnumpy() - before[p.name]).max() > 0 for p in net.trainable_params())
