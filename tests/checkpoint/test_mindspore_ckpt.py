"""MindSpore's own files, read without MindSpore; damaged ones end in one line."""

from __future__ import annotations

import numpy as np
import pytest

from mindpangu import runtime
from mindpangu.checkpoint.mindspore_ckpt import MindSporeCheckpoint
from mindpangu.errors import UserError

TENSORS = {
    "model.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4) - 7.5,
    "half": np.array([1.5, -2.0], np.float16),
    "ids": np.array([[1, 300, -5]], np.int64),
    "big": np.random.default_rng(0).standard_normal((1000, 300)).astype(np.float32),
}


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "with checksum"])
def file(request, tmp_path_factory):
    runtime.start("CPU")
    import mindspore as ms
    from mindspore.train import serialization

    path = tmp_path_factory.mktemp("ckpt") / "model.ckpt"
    before, serialization.SLICE_SIZE = serialization.SLICE_SIZE, 256  # KB: "big" becomes several pieces
    try:
        named = [{"name": name, "data": ms.Tensor(value)} for name, value in TENSORS.items()]
        ms.save_checkpoint(named, str(path), crc_check=request.param)
    finally:
        serialization.SLICE_SIZE = before
    return path


def test_every_parameter_comes_back(file):
    read = MindSporeCheckpoint(file)
    assert list(read.entries) == list(TENSORS)
    for name, value in TENSORS.items():
        assert read.read(name).dtype == value.dtype
        np.testing.assert_array_equal(read.read(name), value)
        assert read.entries[name].shape == value.shape


def test_a_truncated_file_says_so_wherever_it_ends(file, tmp_path):
    content = file.read_bytes()
    ends = [len(content) - 100_000, len(content) - 20, 60, 3]
    for end in ends:
        cut = tmp_path / "cut.ckpt"
        cut.write_bytes(content[:end])
        with pytest.raises(UserError, match=r"cut\.ckpt: truncated"):
            MindSporeCheckpoint(cut)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip archive, as PyTorch writes", b"\x80\x04\x95pickle" * 9])
def test_another_kind_of_file_is_named(tmp_path, content):
    path = tmp_path / "other.ckpt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"other\.ckpt: .*not a MindSpore checkpoint"):
        MindSporeCheckpoint(path)


def test_an_absent_file(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        MindSporeCheckpoint(tmp_path / "absent.ckpt")
