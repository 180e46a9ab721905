"""Fine-tuning: LoRA learns beside weights that stay, and its file loads back; a subject beside its kind."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindpangu.checkpoint.store import load_tensors, read_card
from mindpangu.config import parse
from mindpangu.errors import UserError
from mindpangu.spec import TEXT_ENCODERS
from mindpangu.train.config import FinetuneConfig, TrainConfig
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

    from mindpangu.checkpoint.lora import load_lora, merged
    from mindpangu.checkpoint.store import load_into, save_tensors
    from mindpangu.models.inventory import parts, spec_of
    from mindpangu.models.lora import UNET_LAYERS, adapt, unet_file
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
    adapt(unet, UNET_LAYERS, 2, 4.0, "all")
    made_up = {p.name: (0.3 * rng.standard_normal(p.shape)).astype(np.float32) for p in unet.trainable_params()}
    load_into(unet.trainable_params(), made_up, "made up")
    save_tensors(tuned / "made_up.safetensors", unet_file(unet, made_up, 2.0, "texture"))
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
    assert [(one["file"], one["scale"]) for one in changed.settings["loras"]] == [("made_up.safetensors", 1.0)]


@pytest.fixture(scope="module")
def told(runs, tmp_path_factory):
    """The same with text encoders that learn too, on encoded data; and a LoRA of the net beside it."""
    from mindpangu.data import pack
    from mindpangu.data.examples import DataConfig, Examples
    from mindpangu.data.shards import find
    from mindpangu.train.encode import EncodeConfig, encode
    from mindpangu.train.run import run
    from tests.conftest import without_graphs
    from tests.tiny import SAMPLE, SIZES, STYLES

    folder = tmp_path_factory.mktemp("told")
    pack.pack(pack.scenes(Examples(DataConfig(SAMPLE, tuple(STYLES))), 6), folder / "shards", 6, lambda count: None)
    sizes = tuple(SIZES)
    config = EncodeConfig(runs / "vae", runs / "clip", sizes, 8, sizes)

    def tune(name, images, lora):
        config = tuning(runs, folder / name, lora, runner_config={"images": images, "batch_size": 2})
        task = replace(config.diffusion, encoded=folder / "encoded", scenes=0)
        run(replace(config, data=None, diffusion=task))

    with without_graphs():
        encode(find(str(folder / "shards" / "*.tar")), config, folder / "encoded", lambda count: None)
        tune("both", 20, {"rank": 2, "modules": "all", "expert": "structure", "text_encoders": True})
        tune("beside", 4, {"rank": 2, "expert": "texture", "beside": str(folder / "both" / "lora.safetensors")})
    return folder


def test_text_encoders_learn_and_the_file_merges_into_them(runs, told, model_folder, uncompiled, monkeypatch):
    """What the adapted encoders say is what the model's say with the file merged; the other net learned beside it."""
    from mindspore import Tensor, mutable

    from mindpangu.checkpoint.store import load_into, save_tensors
    from mindpangu.infer.pipeline import PanGuDraw
    from mindpangu.models.loading import load_conditioner
    from mindpangu.models.lora import TEXT_ENCODER_LAYERS, adapt, text_encoder_file
    from mindpangu.train.diffusion import text_encoder_specs

    monkeypatch.setenv("MINDPANGU_CPU_OPS", "fp32")
    learned = load_tensors(told / "both" / "lora.safetensors")
    parts = {name.split(".")[0] for name in learned}
    assert parts == {"unet", "text_encoder", "text_encoder_2"}
    for part in parts:  # the ups left zero behind, in each part
        assert any(
            np.abs(value).max() > 0 for name, value in learned.items() if name.startswith(f"{part}.") and "_B" in name
        )
    assert any(name.endswith("text_model.encoder.layers.0.self_attn.k_proj.lora_B.weight") for name in learned)
    assert {name.split(".")[0] for name in load_tensors(told / "beside" / "lora.safetensors")} == {"unet"}

    text_encoders, rng = load_conditioner(runs / "clip", TEXT_ENCODERS, 8), np.random.default_rng(0)
    adapt(text_encoders, TEXT_ENCODER_LAYERS, 2, 4.0, "all")
    made_up = {
        p.name: (0.3 * rng.standard_normal(p.shape)).astype(np.float32) for p in text_encoders.trainable_params()
    }
    load_into(text_encoders.trainable_params(), made_up, "made up")
    file = {}
    for i, (spec, part) in enumerate(
        zip(text_encoder_specs(runs / "clip").values(), ("text_encoder", "text_encoder_2"))
    ):
        own = {
            name[len(f"text_encoders.{i}.") :]: value
            for name, value in made_up.items()
            if name.startswith(f"text_encoders.{i}.")
        }
        file.update(text_encoder_file(spec, own, 2.0, part))
    save_tensors(told / "made_up.safetensors", file)
    model = PanGuDraw.from_pretrained(str(model_folder))
    ids = mutable(tuple(Tensor(tokenizer(["a red bus", "一只狐狸"])) for tokenizer in model.tokenizers))
    numbers = Tensor(np.zeros((2, 1), np.float32))
    plain = [one.asnumpy() for one in model.conditioner(ids, numbers)]
    model.set_loras([(told / "made_up.safetensors", 1.0)])
    for merged, adapted, before in zip(model.conditioner(ids, numbers), text_encoders(ids, numbers), plain):
        np.testing.assert_allclose(merged.asnumpy(), adapted.asnumpy(), atol=1e-4)
        assert np.abs(merged.asnumpy() - before).max() > 1e-2


def finetuning(told, model_folder, folder, **changes):
    values = {
        "output_dir": str(folder),
        "model": str(model_folder),
        "encoded": str(told / "encoded"),
        "runner_config": {"images": 16, "batch_size": 2},
        "lr_schedule": {"learning_rate": 1e-3},
        "lora": {"rank": 2, "modules": "all", "text_encoders": True},
        **changes,
    }
    return parse(values, FinetuneConfig, "test")


def test_one_command_tunes_every_net_of_a_model_in_its_own_noise_levels(told, model_folder, tmp_path, uncompiled):
    from mindpangu.checkpoint.lora import load_lora
    from mindpangu.models.inventory import parts, spec_of
    from mindpangu.train.finetune import finetune, trainings

    config = finetuning(told, model_folder, tmp_path / "lora")
    both = trainings(config)
    ranges = {name: (one.diffusion.t_min, one.diffusion.t_max) for name, one in both.items()}
    assert ranges == {"structure": (500, 1000), "texture": (0, 500)}
    path = finetune(config)
    spec = spec_of(model_folder)
    assert set(load_lora(path, spec, parts(spec))) == {"structure", "texture", *TEXT_ENCODERS}
    before = path.read_bytes()
    assert finetune(config).read_bytes() == before  # nothing is trained twice


def test_one_command_tunes_a_model_of_one_net_so_that_diffusers_reads_it(line_model, told, model_folder, tmp_path):
    import json
    import shutil

    from mindpangu.train.finetune import trainings

    with pytest.raises(UserError, match="its nets know no words"):
        trainings(finetuning(told, line_model, tmp_path / "lora"))
    with pytest.raises(UserError, match=r"lora.expert and lora.beside follow from the model"):
        finetuning(told, model_folder, tmp_path, lora={"expert": "structure"})
    shutil.copytree(model_folder, tmp_path / "one")
    description = json.loads((tmp_path / "one" / "model.json").read_text("utf-8"))
    (tmp_path / "one" / "model.json").write_text(json.dumps({**description, "experts": {"texture": 0}}), "utf-8")
    (training,) = trainings(finetuning(told, tmp_path / "one", tmp_path / "lora")).values()
    assert training.diffusion.lora.expert is None
    assert (training.diffusion.t_min, training.diffusion.t_max) == (0, 1000)


def test_text_encoders_cannot_learn_from_features_alone(runs, told, tmp_path):
    from mindpangu.checkpoint.store import save_checkpoint
    from mindpangu.train.encoded import TrainEncoded

    for path in (told / "encoded").glob("*.safetensors"):
        tensors = {name: value for name, value in load_tensors(path).items() if ".ids." not in name}
        save_checkpoint(tmp_path / path.name, tensors, read_card(path))
    config = tuning(runs, tmp_path / "out", {"rank": 2, "text_encoders": True})
    task = replace(config.diffusion, encoded=tmp_path, scenes=0)
    with pytest.raises(UserError, match="holds features alone, and words are needed; encode it again"):
        TrainEncoded(replace(config, data=None, diffusion=task))
    with pytest.raises(UserError, match="has no updates of text encoders"):
        lora = replace(config.diffusion.lora, beside=told / "beside" / "lora.safetensors")
        TrainEncoded(replace(config, data=None, diffusion=replace(task, lora=lora)))


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
    from mindpangu.models.layers import DOWN, UP
    from mindpangu.models.lora import UNET_LAYERS, adapt, unet_file
    from mindpangu.models.unet import UNet
    from tests.parity.golden_pipelines import lora_tensors, narrow

    spec = narrow("sd15")
    unet = UNet(spec.unets["unet"])
    adapt(unet, UNET_LAYERS, 4, 4.0, "all")
    learned = {p.name: p.asnumpy() for p in unet.trainable_params()}
    assert {name.rpartition(".")[2] for name in learned} == {DOWN, UP}
    file = unet_file(unet, learned, 1.0)
    read = {
        name: value.shape
        for name, value in lora_tensors(spec, "peft").items()
        if name.startswith("unet.") and "conv1" not in name
    }
    assert read
    assert {name: file[name].reshape(file[name].shape[:2]).shape for name in read if name in file} == {
        name: shape[:2] for name, shape in read.items()
    }


def test_the_text_encoders_names_are_those_that_diffusers_has_read():
    """Of SDXL's two text encoders, the second one's queries, keys and values packed in ours."""
    from mindpangu.models.clip import text_encoder
    from mindpangu.models.lora import TEXT_ENCODER_LAYERS, adapt, text_encoder_file
    from tests.parity.golden_pipelines import lora_tensors, narrow

    spec, file = narrow("sdxl"), {}
    for name, text in spec.texts.items():
        encoder = text_encoder(text)
        adapt(encoder, TEXT_ENCODER_LAYERS, 4, 4.0, "all")
        file.update(text_encoder_file(text, {p.name: p.asnumpy() for p in encoder.trainable_params()}, 1.0, name))
    read = {k: v.shape for k, v in lora_tensors(spec, "peft").items() if k.startswith("text_encoder")}
    assert {name.partition(".")[0] for name in read} == {"text_encoder", "text_encoder_2"}
    assert {name: file[name].shape for name in read} == read
