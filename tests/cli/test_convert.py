"""`convert` and what `generate` does with its results: the whole way through the command line, on a narrow SD 1.5."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from PIL import Image

from mindpangu.cli.generate import parse_control, parse_loras
from mindpangu.errors import UserError
from mindpangu.infer.image_file import read_settings
from mindpangu.spec import TextSpec
from tests.cli.test_commands import mindpangu
from tests.parity.golden_pipelines import build, control_tensors, lora_tensors, narrow, single_file, source_picture
from tests.parity.golden_tokenizers import vocabulary


def test_a_file_a_controlnet_and_a_lora_become_a_picture(tmp_path):
    from mindpangu.checkpoint.store import save_tensors
    from mindpangu.config import dump

    spec = narrow("sd15")
    build(spec, tmp_path / "ours")
    single_file(tmp_path / "ours", tmp_path / "sd.safetensors")
    save_tensors(tmp_path / "canny.safetensors", control_tensors(spec))
    save_tensors(tmp_path / "ink.safetensors", lora_tensors(spec, "kohya"))
    Image.fromarray(source_picture()).save(tmp_path / "edges.png")
    (tmp_path / "narrow.yaml").write_text(yaml.safe_dump(dump(spec)), encoding="utf-8")
    described = ("--model", str(tmp_path / "narrow.yaml"), "--out")
    done = mindpangu("convert", str(tmp_path / "sd.safetensors"), *described, str(tmp_path / "model"))
    assert done.returncode == 0, done.stderr
    done = mindpangu(
        "convert", str(tmp_path / "canny.safetensors"), "--controlnet", *described, str(tmp_path / "canny")
    )
    assert done.returncode == 0, done.stderr
    done = mindpangu(
        "generate", "a cat", "--model", str(tmp_path / "model"), "--steps", "2", "--out", str(tmp_path / "out"),
        "--control", f"{tmp_path / 'canny'}={tmp_path / 'edges.png'},strength=0.5",
        "--lora", f"{tmp_path / 'ink.safetensors'}=0.7",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    settings = read_settings(tmp_path / "out" / "0000.png")
    (lora,) = settings["loras"]
    assert (lora["file"], lora["scale"]) == ("ink.safetensors", 0.7) and len(lora["sha256"]) == 16
    assert settings["controls"][0]["strength"] == 0.5
    done = mindpangu("convert", str(tmp_path / "model"), "--to", "diffusers", "--out", str(tmp_path / "theirs"))
    assert done.returncode == 0, done.stderr
    assert {"model_index.json", "unet", "vae", "text_encoder"} <= {
        path.name for path in (tmp_path / "theirs").iterdir()
    }


def test_a_model_with_chinese_clips_text_encoder_goes_to_diffusers_and_back(tmp_path):
    from mindpangu.checkpoint.store import load_tensors
    from mindpangu.config import dump
    from mindpangu.text.tokenizer import TextTokenizer
    from mindpangu.text.vocabularies import bert_wordpiece

    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary()) + "\n", encoding="utf-8")
    spec = narrow("sd15")
    encoder = TextSpec(len(vocabulary()), 3, spec.texts["text_encoder"].width, 2, 2, "gelu", "bert", 20, 8)
    spec = replace(spec, texts={"text_encoder": encoder})
    build(spec, tmp_path / "ours", bert_wordpiece(tmp_path / "vocab.txt"))
    (tmp_path / "narrow.yaml").write_text(yaml.safe_dump(dump(spec)), encoding="utf-8")
    done = mindpangu("convert", str(tmp_path / "ours"), "--to", "diffusers", "--out", str(tmp_path / "theirs"))
    assert done.returncode == 0, done.stderr
    back = ("--model", str(tmp_path / "narrow.yaml"), "--dtype", "fp32", "--out", str(tmp_path / "back"))
    done = mindpangu("convert", str(tmp_path / "theirs"), *back)
    assert done.returncode == 0, done.stderr
    ours, again = (load_tensors(tmp_path / name / "text_encoder.safetensors") for name in ("ours", "back"))
    assert ours.keys() == again.keys() and all((ours[name] == again[name]).all() for name in ours)
    readers = [TextTokenizer.load(tmp_path / name / "tokenizer.json", 20) for name in ("ours", "back")]
    assert readers[0](["一只狐狸"]).tolist() == readers[1](["一只狐狸"]).tolist()
    done = mindpangu(
        "generate", "一只狐狸", "--model", str(tmp_path / "back"), "--steps", "1", "--out", str(tmp_path / "o")
    )
    assert done.returncode == 0, done.stderr
    (tmp_path / "theirs" / "tokenizer" / "vocab.txt").unlink()
    done = mindpangu("convert", str(tmp_path / "theirs"), *back)
    assert done.returncode == 2 and "vocab.txt: no such file" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("x.safetensors",), "say what x.safetensors holds: --model"),
        (("x.ckpt", "--model", "sd15"), "x.ckpt: a pickle file"),
        (("a", "b", "c"), "3 sources were given"),
        (("emoji-128", "--to", "diffusers"), "diffusers has no class for its autoencoder"),
        (("x.safetensors", "--to", "onnx"), "--to onnx is unknown; allowed: mindpangu, diffusers"),
    ],
)
def test_one_line_for_what_cannot_be_converted(arguments, message, tmp_path):
    done = mindpangu("convert", *arguments, "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_options_of_loras_and_controls():
    assert parse_loras(["a=b.safetensors=0.8", "c.safetensors"]) == [
        (Path("a=b.safetensors"), 0.8),
        (Path("c.safetensors"), 1.0),
    ]
    assert parse_control("canny=edges.png,end=0.6") == (Path("canny"), Path("edges.png"), {"end": 0.6})
    for text in ("a.safetensors=", "a.safetensors=much", "a.safetensors=nan"):
        with pytest.raises(UserError, match="use file=scale"):
            parse_loras([text])
    for text in ("canny", "canny=", "canny=x.png,much=1", "canny=x.png,strength=very"):
        with pytest.raises(UserError, match="use FOLDER=PICTURE"):
            parse_control(text)
