"""Fine-tuning: LoRA learns beside weights that stay, and its file loads back; a subject beside its kind."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindpangu.checkpoint.store import load_tensors
from mindpangu.config import parse
from mindpangu.errors import UserError
from mindpangu.train.config import TrainConfig
from tests.tiny import training
from tests.train.test_loop import states


def tuning(runs, folder, lora, **changes):
    values = training("structure", runs, output_dir=str(folder), **changes)
    values["diffusion"]["lora"] = lora
    # The varied net: the other one still ends in a layer of zeros, behind which nothing learns.
    values["load_checkpoint"] = str(runs / "texture" / "unet.safetensors")
    return parse(values, TrainConfig, "tuning")


@pytest.fixture(scope="module")
def tuned(runs, tmp_path_factory):
    """A folder with a LoRA of the tiny model's structure net, and the state that its training left."""
    from mindpangu.train.run import run
    from tests.conftest import without_graphs

    folder = tmp_path_factory.mktemp("tuned")
    lora = {"rank": 2, "alpha": 4.0, "modules": "all", "expert": "texture"}
    with without_graphs():  # ten steps: the average, which is what is exported, moves at the eighth
        run(tuning(runs, folder, lora, runner_config={"images": 20, "batch_size": 2}))
    return folder


def test_only_the_update_learns_and_its_file_merges_into_the_same_net(
    runs, tuned, model_folder, uncompiled, monkeypatch
):
    from mindspore import Tensor

    from mindpangu.checkpoint.store import load_into, save_tensors
    from mindpangu.models.adapters import adapt, lora_file
    from mindpangu.models.inventory import parts, spec_of
    from mindpangu.models.lora import load_lora, merged
    from mindpangu.models.unet import UNet

    monkeypatch.setenv("MINDPANGU_CPU_OPS", "fp32")
    state = load_tensors(states(tuned)[0])
    learned = {name for name in state if name.startswith("weight.") or "unet." in name}
    assert learned
    assert all("lora_" in name for name in learned)
    model = spec_of(model_folder)
    lora = load_lora(tuned / "lora.safetensors", model, parts(model))
    assert set(lora) == {"texture"}
    base = load_tensors(runs / "texture" / "unet.safetensors")
    changed = merged(base, [(lora, 1.0)], "texture")
    moved = {name for name, value in changed.items() if np.abs(value - base[name].astype(np.float32)).max() > 0}
    assert moved
    assert all("transformer_blocks" in name or "proj_" in name for name in moved)
    # The adapted net with what was learned (here: made up, so that it shows) is the net with merged weights.
    unet, plain, rng = UNet(model.unets["texture"]), UNet(model.unets["texture"]), np.random.default_rng(0)
    load_into(unet.trainable_params(), base, "base")
    adapt(unet, 2, 4.0, "all")
    made_up = {p.name: (0.3 * rng.standard_normal(p.shape)).astype(np.float32) for p in unet.trainable_params()}
    load_into(unet.trainable_params(), made_up, "made up")
    save_tensors(tuned / "made_up.safetensors", lora_file(unet, made_up, 2.0, "texture"))
    lora = load_lora(tuned / "made_up.safetensors", model, parts(model))
    load_into(plain.trainable_params(), merged(base, [(lora, 1.0)], "texture"), "merged")
    spec = model.unets["texture"]
    told = [
        Tensor(rng.standard_normal(shape).astype(np.float32))
        for shape in ((2, 4, 8, 8), (2,), (2, 5, spec.context_dim), (2, spec.vector_dim))
    ]
    adapted, whole = unet(*told).asnumpy(), plain(*told).asnumpy()
    np.testing.assert_allclose(adapted, whole, atol=1e-4 * np.abs(whole).max())
    load_into(plain.trainable_params(), base, "base")
    assert np.abs(plain(*told).asnumpy() - whole).max() > 1e-2 * np.abs(whole).max()


def test_an_untrained_update_changes_nothing(model_folder):
    from mindspore import Tensor

    from mindpangu.models.layers import Dense

    rng = np.random.default_rng(0)
    dense, x = Dense(6, 4, True, "xavier_uniform"), Tensor(rng.standard_normal((3, 6)).astype(np.float32))
    before = dense(x).asnumpy()
    again = Dense(6, 4, True, "xavier_uniform")
    again.weight.set_data(dense.weight)
    again.adapt(2, 3.0)
    np.testing.assert_array_equal(again(x).asnumpy(), before)


def test_generate_takes_the_file_and_says_so(tuned, model_folder):
    from mindpangu.infer.pipeline import PanGuDraw

    model = PanGuDraw.from_pretrained(str(model_folder))
    plain = model("a fox", steps=2, seed=1)[0]
    model.set_loras([(tuned / "made_up.safetensors", 1.0)])
    changed = model("a fox", steps=2, seed=1)[0]
    assert np.abs(plain.latents - changed.latents).max() > 1e-3
    assert changed.settings["loras"] == {"made_up.safetensors": 1.0}


def test_a_lora_needs_the_net_that_it_changes(runs, tmp_path):
    values = training("structure", runs, output_dir=str(tmp_path))
    values["diffusion"]["lora"] = {"rank": 4}
    with pytest.raises(UserError, match=r"diffusion.lora: load_checkpoint must name the UNet"):
        parse(values, TrainConfig, "test")
    with pytest.raises(UserError, match="rank 0: at least 1"):
        tuning(runs, tmp_path, {"rank": 0})


@given(st.floats(0.01, 0.99), st.integers(0, 2000))
def test_subject_and_kind_take_turns(share, batch):
    """Each one's batches are numbered on without a gap, and the kind has its share."""
    from mindpangu.train.encoded import turn

    turns = [turn(b, share) for b in range(batch + 1)]
    for which in (0, 1):
        own = [number for one, number in turns if one == which]
        assert own == list(range(len(own)))
    assert abs(sum(which for which, _ in turns) - share * (batch + 1)) <= 1


def test_the_files_names_are_those_that_diffusers_has_read(monkeypatch):
    """Of one UNet: the very names of the LoRA that tests/parity draws with on both sides."""
    from mindpangu.models.adapters import adapt, lora_file
    from mindpangu.models.layers import DOWN, UP
    from mindpangu.models.unet import UNet
    from tests.parity.golden_pipelines import lora_tensors, narrow

    spec = narrow("sd15")
    unet = UNet(spec.unets["unet"])
    adapt(unet, 4, 4.0, "all")
    learned = {p.name: p.asnumpy() for p in unet.trainable_params()}
    assert {name.rpartition(".")[2] for name in learned} == {DOWN, UP}
    file = lora_file(unet, learned, 1.0, None)
    read = {
        name: value.shape
        for name, value in lora_tensors(spec, "peft").items()
        if name.startswith("unet.") and "conv1" not in name
    }
    assert read
    assert {name: file[name].reshape(file[name].shape[:2]).shape for name in read if name in file} == {
        name: shape[:2] for name, shape in read.items()
    }
