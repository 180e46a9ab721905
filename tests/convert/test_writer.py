"""The released files' conversion, on files of the release's whole structure, narrow, which MindSpore itself writes."""

from __future__ import annotations

import shutil
from collections import namedtuple
from dataclasses import replace

import numpy as np
import pytest

from mindpangu import runtime
from mindpangu.checkpoint.ldm import BUFFERS, release_names
from mindpangu.checkpoint.store import load_tensors, read_card, verify
from mindpangu.convert.writer import ConversionOptions
from mindpangu.errors import UserError

LOW, HIGH = "pangu_low_timestamp.ckpt", "pangu_high_timestamp.ckpt"


@pytest.fixture(scope="module")
def spec():
    runtime.start("CPU")
    from mindpangu.models.inventory import find_spec

    whole = find_spec("pangu_draw_v3")
    unet = replace(whole.unets["structure"], model_channels=8, norm_groups=8, head_dim=8, context_dim=32, vector_dim=40)
    text = {"vocab_size": 50, "width": 16, "heads": 2}
    return replace(
        whole,
        unets={"structure": unet, "texture": unet},
        vae=replace(whole.vae, channels=8, norm_groups=8),
        texts={
            "text_encoder": replace(whole.texts["text_encoder"], **text),
            "text_encoder_2": replace(whole.texts["text_encoder_2"], **text, projection_dim=24),
        },
    )


def tensors_of(spec, unet, seed):
    """All of one released file: {their name: array}; the shared parts have the same numbers whatever the seed."""
    from mindpangu.models.inventory import parts

    shapes, tensors = parts(spec), {}
    for part in (unet, "vae", "text_encoder", "text_encoder_2"):
        rng = np.random.default_rng(seed if part == unet else 99)
        names = release_names("unet" if part == unet else part, shapes[part])
        for name, shape in shapes[part].items():
            tensors[names[name]] = rng.standard_normal(shape).astype(np.float32)
    tensors.update({name: np.zeros((1, 4), np.float32) for name in BUFFERS})
    return tensors


def write(path, tensors):
    import mindspore as ms

    infixed = {name.replace("model.", "model._backbone.", 1) if name[:5] == "model" else name: name for name in tensors}
    named = [{"name": theirs, "data": ms.Tensor(tensors[name])} for theirs, name in infixed.items()]
    ms.save_checkpoint(named, str(path))
    return path


@pytest.fixture(scope="module")
def released(spec, tmp_path_factory):
    folder = tmp_path_factory.mktemp("released")
    contents = {"low": tensors_of(spec, "texture", 1), "high": tensors_of(spec, "structure", 2)}
    return write(folder / LOW, contents["low"]), write(folder / HIGH, contents["high"]), contents


def convert(low, high, spec, out, dtype="fp32", shard_bytes=1_000_000, vocabulary=None, said=print):
    from mindpangu.convert.pangu_draw import convert_pangu_draw

    convert_pangu_draw([low, high], spec, out, ConversionOptions(dtype, shard_bytes, vocabulary), said)


def part_of(tensors, part, shapes):
    names = release_names("unet" if part in ("structure", "texture") else part, shapes)
    return {name: tensors[theirs] for name, theirs in names.items()}


def test_every_weight_arrives_once_and_is_what_it_was(spec, released, tmp_path):
    low, high, contents = released
    convert(low, high, spec, tmp_path)
    sources = {"texture": "low", "structure": "high", "vae": "low", "text_encoder": "low", "text_encoder_2": "low"}
    for part, which in sources.items():
        path = tmp_path / f"{part}.safetensors"
        verify(path)
        tensors = load_tensors(path)
        for name, value in part_of(contents[which], part, tensors).items():
            np.testing.assert_array_equal(tensors[name], value)
    shards = read_card(tmp_path / "structure.safetensors")["shards"]
    assert len(shards) > 1
    assert all(one["bytes"] < 1_100_000 for one in shards.values())
    stored = [name for path in tmp_path.glob("*.safetensors") for name in load_tensors(path)]
    assert len(stored) == len(contents["low"]) - len(BUFFERS) + len(load_tensors(tmp_path / "structure.safetensors"))


def test_the_folder_loads_as_a_model(spec, released, tmp_path):
    low, high, contents = released
    words = tmp_path / "vocab.txt"
    words.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"一只狐狸"]), encoding="utf-8")
    convert(low, high, spec, tmp_path / "model", dtype="fp16", shard_bytes=10**9, vocabulary=words)
    from mindpangu import zoo
    from mindpangu.models.loading import load_conditioner, load_model_spec, load_unets, load_vae

    tmp_path = tmp_path / "model"
    zoo.check(zoo.find(tmp_path))
    assert load_model_spec(tmp_path) == spec.pipeline
    structure, _ = load_unets([tmp_path / "structure.safetensors", tmp_path / "texture.safetensors"])
    load_vae(tmp_path / "vae.safetensors")
    load_conditioner(tmp_path, spec.pipeline.text_encoders, spec.pipeline.size_dim)
    ours = structure._stored
    for name, value in part_of(contents["high"], "structure", ours).items():
        np.testing.assert_array_equal(ours[name], value.astype(np.float16))


def test_an_interrupted_conversion_goes_on_and_ends_the_same(spec, released, tmp_path):
    low, high, _ = released
    convert(low, high, spec, tmp_path / "whole")

    def stop(line):
        if line.startswith("texture"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(low, high, spec, tmp_path / "broken", said=stop)
    done = sorted(f for f in (tmp_path / "broken").glob("*.safetensors"))
    assert done
    times = {f: f.stat().st_mtime_ns for f in done[1:]}
    done[0].write_bytes(done[0].read_bytes()[:-1])  # a shard that was damaged meanwhile is written again
    convert(low, high, spec, tmp_path / "broken")
    assert {f: f.stat().st_mtime_ns for f in times} == times
    whole, broken = ({f.name: f.read_bytes() for f in (tmp_path / x).iterdir()} for x in ("whole", "broken"))
    assert whole == broken


def test_swapped_files_are_named(spec, released, tmp_path):
    low, high, _ = released
    with pytest.raises(UserError, match=r"swapped.*give the low one first"):
        convert(high, low, spec, tmp_path)
    with pytest.raises(UserError, match="given twice"):
        convert(low, low, spec, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_not_what_its_name_says(spec, released, tmp_path):
    low, high, _ = released
    renamed = tmp_path / "pangu_low_timestamp-127da122.ckpt"
    shutil.copyfile(low, renamed)
    with pytest.raises(UserError, match=r"the name says 127da122…, the content is [0-9a-f]{8}…"):
        convert(renamed, high, spec, tmp_path / "out")


def test_parameters_that_do_not_fit_are_named(spec, released, tmp_path):
    _, high, contents = released
    tensors = dict(contents["low"])
    del tensors["model.diffusion_model.out.2.bias"]
    tensors["surplus"] = np.zeros(3, np.float32)
    tensors["model.diffusion_model.out.0.gamma"] = np.zeros(7, np.float32)
    wrong = write(tmp_path / LOW, tensors)
    with pytest.raises(
        UserError, match=r"1 missing \(.*out\.2\.bias\); 1 unexpected \(surplus\); 1 mis-shaped \(.*\[7\]"
    ):
        convert(wrong, high, spec, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_of_different_models_are_refused(spec, released, tmp_path):
    _, high, contents = released
    tensors = dict(contents["low"])
    name = "first_stage_model.decoder.conv_out.bias"
    tensors[name] = tensors[name] + 0.5
    other = write(tmp_path / LOW, tensors)
    with pytest.raises(UserError, match=r"do not belong together: .*conv_out\.bias differs by up to 0\.5"):
        convert(other, high, spec, tmp_path / "out")


def test_a_weight_too_large_for_fp16(spec, released, tmp_path):
    low, _, contents = released
    tensors = dict(contents["high"])
    tensors["model.diffusion_model.out.2.bias"] = np.full(4, 1e6, np.float32)
    large = write(tmp_path / HIGH, tensors)
    with pytest.raises(UserError, match=r"out\.2\.bias is too large for fp16; convert to fp32"):
        convert(low, large, spec, tmp_path / "out", dtype="fp16")


def test_a_full_disk_is_seen_before_anything_is_written(spec, released, tmp_path, monkeypatch):
    low, high, _ = released
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 9, 1))
    with pytest.raises(UserError, match=r"GB are needed and 0\.0 GB are free"):
        convert(low, high, spec, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
