"""Whole models of every family: they draw diffusers' pictures, and go to its folders and single files and back."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from mindpangu import runtime
from mindpangu.checkpoint import ldm
from mindpangu.checkpoint.store import load_tensors, save_tensors
from mindpangu.convert.writer import ConversionOptions
from mindpangu.errors import UserError
from tests.parity.golden_pipelines import (
    CONTROL,
    EVERY,
    FAMILIES,
    FROM_PICTURE,
    GOLDEN,
    GUIDANCE,
    LORAS,
    NEGATIVE,
    PROMPTS,
    REFINE_BELOW,
    SIZE,
    STEPS,
    STRENGTH,
    WITH_LORA,
    build,
    control_tensors,
    export_diffusers,
    lora_tensors,
    narrow,
    noise,
    single_file,
    source_picture,
)

NOISE = np.stack([noise(prompt) for prompt in PROMPTS])
LEVEL = 0.5 + 255e-4  # rounding to 8 bits, and 1e-4 of the range


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{family: (spec, our folder, diffusers' folder)}."""
    made = {}
    for family in FAMILIES:
        folder = tmp_path_factory.mktemp(family)
        spec = narrow(family)
        build(spec, folder / "ours")
        export_diffusers(folder / "ours", folder / "theirs")
        made[family] = spec, folder / "ours", folder / "theirs"
    return made


def convert(source, spec, out):
    from mindpangu.convert.stable_diffusion import convert_stable_diffusion

    convert_stable_diffusion([source], spec, out, ConversionOptions("fp32"))


def assert_same(spec, one, other):
    for part in spec.parts:
        a, b = (load_tensors(folder / f"{part}.safetensors") for folder in (one, other))
        assert set(a) == set(b)
        for name, value in a.items():
            np.testing.assert_array_equal(value, b[name], name)
    assert (one / "model.json").read_bytes() == (other / "model.json").read_bytes()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_pictures_are_diffusers(folders, family, monkeypatch):
    monkeypatch.setenv(runtime.CPU_OPERATORS, "fp32")
    from mindpangu.infer.init_image import InitImage
    from mindpangu.infer.pipeline import PanGuDraw

    options = {"steps": STEPS, "guidance": GUIDANCE, "negative": NEGATIVE, "latents": NOISE}
    if family in FROM_PICTURE:
        options.update(init_image=InitImage(source_picture()), strength=STRENGTH)
    drawn = PanGuDraw.from_pretrained(folders[family][1], "CPU")(PROMPTS, **options)
    ours = np.stack([np.asarray(one.image) for one in drawn])[:, ::EVERY, ::EVERY].astype(np.float64)
    with np.load(GOLDEN) as gold:
        assert np.abs(ours - 255 * gold[family].astype(np.float64)).max() <= LEVEL


def test_base_and_refiner_draw_diffusers_picture(folders, monkeypatch, uncompiled):
    monkeypatch.setenv(runtime.CPU_OPERATORS, "fp32")
    from mindpangu.infer.pipeline import PanGuDraw

    base, refiner, other = (
        PanGuDraw.from_pretrained(folders[family][1], "CPU") for family in ("sdxl", "sdxl_refiner", "sd15")
    )
    options = {"steps": STEPS, "guidance": GUIDANCE, "negative": NEGATIVE, "latents": NOISE}
    drawn = base(PROMPTS, **options, refiner=refiner, refine_below=REFINE_BELOW)
    ours = np.stack([np.asarray(one.image) for one in drawn])[:, ::EVERY, ::EVERY].astype(np.float64)
    with np.load(GOLDEN) as gold:
        assert np.abs(ours - 255 * gold["refined"].astype(np.float64)).max() <= LEVEL
    assert drawn[0].settings["refiner"] == "sdxl_refiner"
    with pytest.raises(UserError, match="sd15 cannot refine sdxl: their autoencoders"):
        base(PROMPTS, **options, refiner=other)


@pytest.mark.parametrize("family", WITH_LORA)
def test_loras_move_the_pictures_as_diffusers_does(folders, family, tmp_path, monkeypatch):
    """kohya's and PEFT's file, each at its scale, then both, then none: the weights are bit for bit as before."""
    monkeypatch.setenv(runtime.CPU_OPERATORS, "fp32")
    from mindpangu.infer.pipeline import PanGuDraw

    model = PanGuDraw.from_pretrained(folders[family][1], "CPU")

    def draw():
        drawn = model(PROMPTS, steps=STEPS, guidance=GUIDANCE, negative=NEGATIVE, latents=NOISE)
        return np.stack([np.asarray(one.image) for one in drawn])

    without, loras = draw(), {}
    for form, scale in LORAS.items():
        path = tmp_path / f"{form}.safetensors"
        save_tensors(path, lora_tensors(folders[family][0], form))
        loras[form] = [(path, scale)]
    loras["both"] = [one for some in loras.values() for one in some]
    with np.load(GOLDEN) as gold:
        for name, some in loras.items():
            model.set_loras(some)
            ours = draw()[:, ::EVERY, ::EVERY].astype(np.float64)
            assert np.abs(ours - 255 * gold[f"{family}.{name}"].astype(np.float64)).max() <= LEVEL, name
    of_text = {name: value for name, value in lora_tensors(folders[family][0], "peft").items() if "text" in name}
    save_tensors(tmp_path / "text.safetensors", of_text)
    model.set_loras([(tmp_path / "text.safetensors", LORAS["peft"])])
    assert (
        np.abs(draw().astype(np.float64) - without).max() > 4 * LEVEL
    )  # so the pictures above judge the text encoders too
    model.set_loras([])
    np.testing.assert_array_equal(draw(), without)


@pytest.mark.parametrize("family", WITH_LORA)
def test_a_controlnet_steers_as_in_diffusers(folders, family, tmp_path, monkeypatch, uncompiled):
    """At a strength, for a part of the steps; from its release's names and from diffusers' folder."""
    monkeypatch.setenv(runtime.CPU_OPERATORS, "fp32")
    from mindpangu.convert.stable_diffusion import convert_controlnet
    from mindpangu.infer.control import Control
    from mindpangu.infer.pipeline import PanGuDraw
    from mindpangu.models.loading import load_controlnet

    spec, ours, _ = folders[family]
    (tmp_path / "folder").mkdir()
    save_tensors(tmp_path / "folder" / "diffusion_pytorch_model.safetensors", control_tensors(spec))
    convert_controlnet([tmp_path / "folder"], spec, tmp_path / "control", ConversionOptions("fp32"))
    weights = load_tensors(tmp_path / "control" / "controlnet.safetensors")
    single = {
        name: value
        for one, place in ldm.net_places(ldm.CONTROL, weights).items()
        for name, value in place.write(weights[one]).items()
    }
    save_tensors(tmp_path / "one.safetensors", single)
    convert_controlnet([tmp_path / "one.safetensors"], spec, tmp_path / "again", ConversionOptions("fp32"))
    again = load_tensors(tmp_path / "again" / "controlnet.safetensors")
    assert all(np.array_equal(again[name], value) for name, value in weights.items())
    Image.fromarray(source_picture()).save(tmp_path / "hint.png")
    strength, start, end = CONTROL
    net = load_controlnet(tmp_path / "control" / "controlnet.safetensors")
    control = Control.open(net, [tmp_path / "hint.png"], (SIZE, SIZE), strength=strength, start=start, end=end)
    model = PanGuDraw.from_pretrained(ours, "CPU")
    options = {"steps": STEPS, "guidance": GUIDANCE, "negative": NEGATIVE, "latents": NOISE}
    drawn = model(PROMPTS, **options, controls=(control,))
    pictures = np.stack([np.asarray(one.image) for one in drawn])[:, ::EVERY, ::EVERY].astype(np.float64)
    with np.load(GOLDEN) as gold:
        assert np.abs(pictures - 255 * gold[f"{family}.control"].astype(np.float64)).max() <= LEVEL
    twice = model(
        PROMPTS[:1], **{**options, "latents": NOISE[:1]}, controls=(replace(control, strength=0.5 * strength),) * 2
    )
    assert np.abs(np.asarray(twice[0].image, np.float64) - np.asarray(drawn[0].image)).max() <= 1  # halves add up
    assert drawn[0].settings["controls"][0]["strength"] == strength
    with pytest.raises(UserError, match="made for nets of another shape"):
        other = FAMILIES[(FAMILIES.index(family) + 1) % len(FAMILIES)]
        PanGuDraw.from_pretrained(folders[other][1], "CPU")(PROMPTS, controls=(control,))


@pytest.mark.parametrize("family", FAMILIES)
def test_to_diffusers_and_back(folders, family, tmp_path):
    spec, ours, theirs = folders[family]
    convert(theirs, spec, tmp_path / "again")
    assert_same(spec, ours, tmp_path / "again")


@pytest.mark.parametrize("family", FAMILIES)
def test_from_a_single_file(folders, family, tmp_path):
    spec, ours, _ = folders[family]
    single_file(ours, tmp_path / "one.safetensors")
    convert(tmp_path / "one.safetensors", spec, tmp_path / "again")
    assert_same(spec, ours, tmp_path / "again")


def test_variants_of_the_folder(folders, tmp_path):
    """fp16 names, shards with an index, an autoencoder and a text encoder with the names of other versions."""
    spec, ours, theirs = folders["sd15"]
    shutil.copytree(theirs, tmp_path / "in")
    unet = tmp_path / "in" / "unet"
    tensors = load_tensors(unet / "diffusion_pytorch_model.safetensors")
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, some in shards.items():
        save_tensors(unet / file, {name: tensors[name] for name in some})
    index = {"weight_map": {name: file for file, some in shards.items() for name in some}}
    (unet / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    vae = tmp_path / "in" / "vae" / "diffusion_pytorch_model.safetensors"
    words = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    renamed = {}
    for name, value in load_tensors(vae).items():
        for now, before in words.items():
            name = name.replace(now, before)  # noqa: PLW2901
        renamed[name] = value
    save_tensors(vae.with_name("diffusion_pytorch_model.fp16.safetensors"), renamed)
    vae.unlink()
    text = tmp_path / "in" / "text_encoder" / "model.safetensors"
    save_tensors(text, {name.removeprefix("text_model."): value for name, value in load_tensors(text).items()})
    convert(tmp_path / "in", spec, tmp_path / "again")
    assert_same(spec, ours, tmp_path / "again")


def test_bfloat16_is_read(folders, tmp_path):
    """Numbers that bfloat16 holds come back as they were."""
    spec, ours, theirs = folders["sd15"]
    path = tmp_path / "in" / "vae" / "diffusion_pytorch_model.safetensors"
    shutil.copytree(theirs, tmp_path / "in")
    tensors = load_tensors(path)
    rounded = {n: (v.view(np.uint32) & 0xFFFF0000).view(np.float32) for n, v in tensors.items()}
    header, offset = {}, 0
    for name, value in rounded.items():
        header[name] = {"dtype": "BF16", "shape": value.shape, "data_offsets": [offset, offset + 2 * value.size]}
        offset += 2 * value.size
    text = json.dumps(header).encode()
    content = b"".join((v.view(np.uint32) >> 16).astype(np.uint16).tobytes() for v in rounded.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + content)
    convert(tmp_path / "in", spec, tmp_path / "again")
    whole, again = (load_tensors(folder / "vae.safetensors") for folder in (ours, tmp_path / "again"))
    for name, value in again.items():
        np.testing.assert_array_equal(value, (whole[name].view(np.uint32) & 0xFFFF0000).view(np.float32))


def test_what_does_not_fit_is_named(folders, tmp_path):
    spec, ours, theirs = folders["sd15"]
    with pytest.raises(UserError, match=r"text_encoder_2: no model\.safetensors there, whole, fp16 or sharded"):
        convert(theirs, narrow("sdxl"), tmp_path / "out")
    path = tmp_path / "one.safetensors"
    single_file(ours, path)
    tensors = load_tensors(path)
    del tensors["first_stage_model.quant_conv.bias"]
    tensors["surplus"] = np.zeros(3, np.float32)
    tensors["model.diffusion_model.out.0.bias"] = np.zeros(7, np.float32)
    save_tensors(path, tensors)
    with pytest.raises(
        UserError,
        match=r"1 missing \(first.*quant_conv\.bias\); 1 unexpected \(surplus\); 1 mis-shaped \(.*out\.0\.bias \[7\]",
    ):
        convert(path, spec, tmp_path / "out")
    save_tensors(path, {name: value for name, value in tensors.items() if not name.startswith("cond_stage")})
    with pytest.raises(UserError, match="holds no text encoder"):
        convert(path, spec, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pickles_are_refused_with_the_safe_way(folders, tmp_path):
    spec, _, theirs = folders["sd15"]
    for name in ("model.ckpt", "model.pt", "model.bin"):
        (tmp_path / name).write_bytes(b"anything")
        with pytest.raises(UserError, match=r"a pickle file, which can run any program.*\.safetensors version"):
            convert(tmp_path / name, spec, tmp_path / "out")
    shutil.copytree(theirs, tmp_path / "in")
    unet = tmp_path / "in" / "unet" / "diffusion_pytorch_model"
    unet.with_suffix(".safetensors").rename(unet.with_suffix(".bin"))
    with pytest.raises(UserError, match=r"\.bin: a pickle file"):
        convert(tmp_path / "in", spec, tmp_path / "out")
    with pytest.raises(UserError, match="no such file"):
        convert(tmp_path / "absent.safetensors", spec, tmp_path / "out")


def test_what_a_source_says_of_its_predictions_counts(folders, tmp_path):
    """The shapes are equal, so nothing else could notice; zero terminal SNR is taken over."""
    spec, _, theirs = folders["sd21"]
    assert spec.pipeline.prediction == "v"
    shutil.copytree(theirs, tmp_path / "in")
    path = tmp_path / "in" / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "rescale_betas_zero_snr": True}))
    tensors = load_tensors(tmp_path / "in" / "text_encoder" / "model.safetensors")
    tensors["text_model.embeddings.position_ids"] = np.arange(77)[None]  # as transformers before 4.31
    save_tensors(tmp_path / "in" / "text_encoder" / "model.safetensors", tensors)
    convert(tmp_path / "in", spec, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "model.json").read_text())["schedule"]["zero_terminal_snr"] is True
    export_diffusers(tmp_path / "out", tmp_path / "back")
    assert json.loads((tmp_path / "back" / "scheduler" / "scheduler_config.json").read_text())["rescale_betas_zero_snr"]
    path.write_text(json.dumps({**config, "prediction_type": "epsilon"}))
    with pytest.raises(UserError, match=r"says that its nets predict epsilon; .* says v"):
        convert(tmp_path / "in", spec, tmp_path / "none")
    epsilon, folder, _ = folders["sd15"]
    single_file(folder, tmp_path / "one.safetensors")
    marked = {**load_tensors(tmp_path / "one.safetensors"), "v_pred": np.zeros(0, np.float32)}
    save_tensors(tmp_path / "marked.safetensors", marked)
    with pytest.raises(UserError, match=r"says that its nets predict v; .* says epsilon"):
        convert(tmp_path / "marked.safetensors", epsilon, tmp_path / "none")
    assert not (tmp_path / "none").exists()
