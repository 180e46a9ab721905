"""The 5B model's training files: each is planned, and starts with tiny widths."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mindpangu import runtime
from mindpangu.config import load, parse
from mindpangu.parallel.config import ClusterConfig
from mindpangu.train.config import TrainConfig
from mindpangu.train.plan import plan, read_histogram
from mindpangu.train.regimes import REGIMES
from tests.conftest import without_graphs
from tests.tiny import SIZES, training

CONFIGS = Path(__file__).parents[2] / "configs"
DEVICES = (8, 64, 256)


@pytest.mark.parametrize("devices", DEVICES)
def test_a_recipe_is_that_of_a_plan_that_fits(devices):
    runtime.start("CPU")
    from mindpangu.models.inventory import find_spec

    recipe = load(CONFIGS / "train" / f"pangu_draw_{devices}.yaml", TrainConfig)
    cluster = load(CONFIGS / "parallel" / f"910b_{devices}.yaml", ClusterConfig)
    assert recipe.parallel_config == cluster.parallel_config
    assert recipe.recompute_config == cluster.recompute_config
    assert recipe.runner_config.batch_size == cluster.global_batch * recipe.runner_config.gradient_accumulation_steps
    model = find_spec("pangu_draw_v3")
    assert recipe.diffusion.unet == model.unets["structure"]
    regime = REGIMES["time_decoupled"](recipe.runner_config.images)
    found = plan(regime, read_histogram(CONFIGS / "train" / "histogram.yaml", regime), model, cluster)
    assert max(stage.memory.total for stage in found.stages) < cluster.memory_gib * 2**30


@pytest.mark.parametrize("devices", DEVICES)
def test_a_recipe_starts_with_tiny_widths(runs, tmp_path, devices):
    """One step of the file as it is, but for widths, data, and the number of processes."""
    from mindpangu.train.run import run

    values = yaml.safe_load((CONFIGS / "train" / f"pangu_draw_{devices}.yaml").read_text(encoding="utf-8"))
    tiny = training("structure", runs)
    values["diffusion"]["unet"].update(
        model_channels=16, head_dim=16, context_dim=32, vector_dim=24, norm_groups=4, transformer_depth=[0, 1, 1]
    )
    values["diffusion"].pop("encoded")
    values["diffusion"].update(vae=str(runs / "vae"), text=str(runs / "clip"), sizes=SIZES, size_dim=8, scenes=16)
    values["context"]["device_target"] = "CPU"
    values["parallel_config"]["data_parallel"] = 1
    parts = min(2, values["runner_config"]["gradient_accumulation_steps"])
    values["runner_config"].update(images=2 * parts, batch_size=2 * parts, gradient_accumulation_steps=parts)
    values["callbacks"]["tensorboard"] = False
    values.update(data=tiny["data"], output_dir=str(tmp_path / "out"))
    with without_graphs():
        run(parse(values, TrainConfig, "recipe"))
    assert (tmp_path / "out" / "unet.safetensors").exists()
