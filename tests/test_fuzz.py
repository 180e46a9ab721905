"""Whatever a file holds, its reader reads it or says why not in one line: cut, with changed bytes, or of chance alone.

Pictures are tried in test_images.py, LoRA files in checkpoint/test_lora.py, rows of prompts in infer/test_batch.py.
"""

from __future__ import annotations

import io
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from mindpangu.checkpoint.store import read_card, save_tensors
from mindpangu.checkpoint.tensor_files import TensorFiles, folder_files
from mindpangu.config import load
from mindpangu.convert.stable_diffusion import convert_controlnet
from mindpangu.convert.writer import ConversionOptions
from mindpangu.data.shards import BadSampleError, Shard, captions_of, write
from mindpangu.errors import UserError
from mindpangu.infer.coop import CoopConfig
from mindpangu.infer.image_file import read_settings
from mindpangu.train.config import TrainConfig
from tests.parity.golden_pipelines import control_tensors, narrow
from tests.tiny import training

pytestmark = pytest.mark.usefixtures("little_memory")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A sound file of each kind: {kind: content}."""
    folder = tmp_path_factory.mktemp("whole")
    picture, info = io.BytesIO(), PngImagePlugin.PngInfo()
    info.add_itxt("mindpangu", '{"prompt": "a fox", "seed": 1, "styles": {"noto": 2}}')
    Image.new("RGB", (4, 4)).save(picture, "PNG", pnginfo=info)
    write(folder / "a.tar", [("a", {"png": picture.getvalue(), "txt": b"a fox", "json": b'{"caption": "x"}'})])
    save_tensors(folder / "a.safetensors", {"w": np.ones((2, 3), np.float32), "b": np.ones(3, np.float16)})
    save_tensors(folder / "control.safetensors", control_tensors(narrow("sd15")))
    recipe = {
        "members": {"a": {"model": "x"}, "b": {"model": "y"}},
        "output": "a",
        "weights": {"a": {"b": {"share": 1}}},
    }
    return {
        "picture": picture.getvalue(),
        "tar": (folder / "a.tar").read_bytes(),
        "tensors": (folder / "a.safetensors").read_bytes(),
        "controlnet": (folder / "control.safetensors").read_bytes(),
        "training": yaml.safe_dump(training("vae", folder)).encode(),
        "recipe": yaml.safe_dump(recipe).encode(),
        "card": json.dumps({"sha256": "0", "bytes": 3, "spec": {"z_channels": 4}, "shards": {"a": {}}}).encode(),
        "index": json.dumps({"weight_map": {"w": "a.safetensors", "b": "b.safetensors"}}).encode(),
        "caption": b'{"caption_en": "a fox", "caption_zh": "\\u72d0\\u72f8"}',
    }


def read_tar(path):
    shard = Shard(path)
    for entry in shard.entries:
        try:
            shard.read(entry)
        except BadSampleError as error:
            assert "\n" not in str(error)


def read_tensors(path):
    files = TensorFiles([path])
    for name in files.shapes:
        files.read(name)


def read_caption(path):
    try:
        captions_of("json", path.read_bytes())
    except BadSampleError as error:
        assert "\n" not in str(error)


def read_controlnet(path):
    with tempfile.TemporaryDirectory() as out:
        convert_controlnet([path], narrow("sd15"), Path(out), ConversionOptions("fp32"))


READERS = {
    "picture": ("a.png", read_settings),
    "tar": ("a.tar", read_tar),
    "tensors": ("a.safetensors", read_tensors),
    "training": ("a.yaml", lambda path: load(path, TrainConfig)),
    "recipe": ("a.yaml", lambda path: load(path, CoopConfig)),
    "card": ("a.json", read_card),
    "controlnet": ("a.safetensors", read_controlnet),
    "index": ("model.safetensors.index.json", lambda path: folder_files(path.parent, "model")),
    "caption": ("a.json", read_caption),
}
SLOW = {"controlnet": 60}  # examples of a reader that takes long


@pytest.mark.parametrize("kind", READERS)
def test_damaged_files_are_read_or_refused_in_one_line(kind, whole, tmp_path):
    name, read = READERS[kind]

    @settings(max_examples=SLOW.get(kind, 300), deadline=None)
    @given(st.data())
    def tried(data):
        content = bytearray(whole[kind])
        last = len(content) - 1
        for place, value in data.draw(st.lists(st.tuples(st.integers(0, last), st.integers(0, 255)), max_size=5)):
            content[place] = value
        end = data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))
        (tmp_path / name).write_bytes(content[:end] + data.draw(st.binary(max_size=20)))
        try:
            read(tmp_path / name)
        except UserError as error:
            assert "\n" not in str(error), error
        assert [path.name for path in tmp_path.iterdir()] == [name]  # and nothing is written

    tried()
