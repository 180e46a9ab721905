"""A net without words, the ControlNet that steers it, and a latent bridge: trained on a few pictures."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mindpangu.checkpoint.store import load_tensors
from mindpangu.config import parse
from mindpangu.errors import UserError
from mindpangu.train.config import TrainConfig
from mindpangu.train.run import run
from tests.tiny import training
from tests.train.test_loop import states


def config_of(part, folder, **changes) -> TrainConfig:
    return parse(training(part, folder, **changes), TrainConfig, part)


def test_the_base_is_told_nothing(line_runs):
    names = load_tensors(line_runs / "base" / "unet.safetensors").keys()
    assert not [name for name in names if "attn2" in name or "label_emb" in name]


def test_only_the_controlnet_learns_and_starts_as_the_nets_way_down(line_runs):
    from mindpangu.train.control import TrainControl

    base = load_tensors(line_runs / "base" / "unet.safetensors")
    task = TrainControl(config_of("control", line_runs, output_dir=str(line_runs / "control")))
    names = {p.name for p in task.loss_net.trainable_params()}
    assert names and all(name.startswith("controlnet.") for name in names)
    for p in task.loss_net.trainable_params():
        name = p.name[len("controlnet.") :]
        if name in base:
            np.testing.assert_array_equal(p.asnumpy(), base[name].astype(np.float32), err_msg=name)
    state = load_tensors(states(line_runs / "control")[0])
    assert np.abs(state["controlnet.middle_block_out.0.weight"]).max() > 0


def test_hints_are_light_lines_on_black_where_the_picture_has_its_lines(line_runs):
    from mindpangu.train.control import TrainControl

    task = TrainControl(config_of("control", line_runs))
    latents, *_, hints = task.batch(0, 4)
    assert latents.shape[0] == hints.shape[0] == 4
    assert hints.shape[1:] == (3, 32, 32)
    assert 0 <= hints.min() < 0.05
    assert hints.max() > 0.3  # thin lines, scaled down, are grey
    assert np.median(hints) < 0.2
    again = task.batch(0, 4)[-1]
    np.testing.assert_array_equal(hints, again)


def test_a_controlnet_for_a_net_with_words_sees_its_captions_too(runs, model_folder, tmp_path, uncompiled):
    from mindpangu.infer.control import Control, control_net
    from mindpangu.infer.pipeline import PanGuDraw
    from mindpangu.train.control import TrainControl

    values = training("structure", runs, output_dir=str(tmp_path / "control"))
    base = str(runs / "texture" / "unet.safetensors")
    values["diffusion"]["control"] = {"base": base, "hint_widths": [4, 4, 8, 8], "edge_share": 1.0}
    values["optimizer"] = {"type": "muon"}
    values["ema_half_life_images"] = 4
    config = parse(values, TrainConfig, "test")
    *_, hints, ids_a, ids_b, size = TrainControl(config).batch(0, 4)
    assert hints.shape[:2] == (4, 3) and set(np.unique(hints)) == {0.0, 1.0}
    assert ids_a.shape == ids_b.shape == (4, 12) and size.shape == (4, 1)
    run(config)
    model, lines = PanGuDraw.from_pretrained(str(model_folder)), Image.new("RGB", (32, 32))
    lines.paste("white", (8, 8, 24, 24))
    control = Control.open(control_net(tmp_path / "control"), [lines], (32, 32), lines=True, strength=50.0)
    drawn = [model("a fox", steps=2, seed=1, controls=controls)[0].latents for controls in ((), (control,))]
    assert np.abs(drawn[0] - drawn[1]).max() > 1e-3


def test_a_base_of_another_shape_and_a_stem_of_another_factor_are_refused(line_runs):
    from mindpangu.train.control import TrainControl

    values = training("control", line_runs)
    values["diffusion"]["control"]["hint_widths"] = [4, 8]
    with pytest.raises(UserError, match="1/2, the autoencoder to 1/8"):
        TrainControl(parse(values, TrainConfig, "control"))
    values = training("control", line_runs)
    values["diffusion"]["unet"]["channel_mult"] = [1, 1]
    with pytest.raises(UserError, match="not shaped as"):
        TrainControl(parse(values, TrainConfig, "control"))


def test_a_data_set_without_line_drawings_is_named(line_runs, runs):
    from mindpangu.data.examples import Examples
    from mindpangu.data.lines import LineDrawings

    with pytest.raises(UserError, match="no picture of the styles"):
        LineDrawings(Examples(config_of("structure", runs).data))


def test_a_bridge_learns_the_way_between_two_sizes(runs, tmp_path):
    """The loss falls far below that of the nearest guess, the mean latent."""
    vae = str(runs / "vae" / "vae.safetensors")
    config = parse(
        training(
            "bridge",
            tmp_path,
            runner_config={"images": 1600, "batch_size": 16},
            optimizer={"type": "muon"},
            lr_schedule={"learning_rate": 1e-2},
            ema_half_life_images=100,
            callbacks={"log_images": 400, "sample_images": 1600, "checkpoint_images": 1600},
            bridge={
                "source": vae,
                "in_size": "48x48",
                "target": vae,
                "out_size": "32x32",
                "channels": 16,
                "blocks": 1,
                "scenes": 32,
            },
        ),
        TrainConfig,
        "bridge",
    )
    run(config)
    from mindspore import Tensor

    from mindpangu.models.loading import load_bridge

    bridge = load_bridge(tmp_path / "bridge" / "bridge.safetensors")
    pairs = load_tensors(tmp_path / "bridge" / "latents.safetensors")
    z, wanted = (pairs[name].astype(np.float32) for name in ("source", "target"))
    got = bridge(Tensor(z)).asnumpy()
    assert got.shape == wanted.shape == (32, 4, 4, 4)
    assert ((got - wanted) ** 2).mean() < 0.5 * wanted.var()
    with Image.open(tmp_path / "bridge" / "samples-00001600.png") as picture:
        assert picture.size == (8 * 32, 2 * 32)
