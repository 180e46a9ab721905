"""Checkpoints: round trip, atomic writing, and what a load refuses."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from mindspore import Parameter, Tensor
from mindspore.common.initializer import initializer
from mindspore.nn.utils import no_init_parameters

from mindpangu import runtime
from mindpangu.checkpoint.store import load_into, load_tensors, save_checkpoint, verify, write_atomically, write_new
from mindpangu.errors import UserError

runtime.start("CPU")

arrays = hnp.arrays(
    st.sampled_from([np.float16, np.float32, np.float64, np.int32]), hnp.array_shapes(min_dims=0, max_dims=3)
)


@given(st.dictionaries(st.text("abc.", min_size=1, max_size=6), arrays, max_size=4))
@settings(max_examples=30, deadline=None)
def test_what_is_saved_is_loaded(tmp_path_factory, tensors):
    path = tmp_path_factory.mktemp("s") / "t.safetensors"
    save_checkpoint(path, tensors, {"step": 3})
    assert verify(path)["step"] == 3
    loaded = load_tensors(path)
    assert loaded.keys() == tensors.keys()
    for name, value in tensors.items():
        assert loaded[name].dtype == value.dtype
        np.testing.assert_array_equal(loaded[name], value)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.bin"
    write_atomically(path, b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_load_names_missing_unexpected_and_mis_shaped_and_changes_nothing():
    parameters = [Parameter(Tensor(np.ones(shape, np.float32)), name=name) for name, shape in (("a", 2), ("b", 3))]
    with pytest.raises(UserError, match=r"1 missing \(b\); 1 unexpected \(c\); 1 mis-shaped \(a \[4\] for \[2\]\)"):
        load_into(parameters, {"a": np.zeros(4), "c": np.zeros(1)}, "file")
    assert all((p.asnumpy() == 1).all() for p in parameters)


def test_half_precision_becomes_single_and_a_second_load_takes_the_place_of_the_first():
    with no_init_parameters():
        parameter = Parameter(initializer("ones", (2,)), name="a")
    for value in (1.5, -2.5):
        load_into([parameter], {"a": np.array([value, 0.25], np.float16)}, "file")
        np.testing.assert_array_equal(parameter.asnumpy(), np.array([value, 0.25], np.float32))


@pytest.mark.parametrize("content", [b"", b"\x08\x00\x00\x00\x00\x00\x00\x00{}", b"garbage" * 9])
def test_what_is_no_safetensors_file(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content[:-1] if content else content)
    with pytest.raises(UserError, match="not a whole safetensors file"):
        load_tensors(path)


def test_eight_bits_and_bfloat16_become_single_precision(tmp_path):
    """Against the formats' definitions: E4M3's largest is 448, its least 2^-9; E5M2's 57344 and 2^-16."""
    for kind, codes, wanted in (
        ("F8_E4M3", [0x00, 0x80, 0x38, 0x7E, 0x01, 0xB8], [0.0, -0.0, 1.0, 448.0, 2.0**-9, -1.0]),
        ("F8_E5M2", [0x00, 0x3C, 0x7B, 0x01, 0x7C, 0xBC], [0.0, 1.0, 57344.0, 2.0**-16, np.inf, -1.0]),
        ("BF16", [0x80, 0x3F, 0x00, 0xC0], [1.0, -2.0]),
    ):
        header = json.dumps({"w": {"dtype": kind, "shape": [len(wanted)], "data_offsets": [0, len(codes)]}}).encode()
        path = tmp_path / f"{kind}.safetensors"
        path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(codes))
        np.testing.assert_array_equal(load_tensors(path)["w"], np.float32(wanted))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"PK\x03\x04" + b"0" * 40, "a pickle under another name"),
        (b"<!DOCTYPE html><html></html>", "a web page"),
    ],
)
def test_what_lies_there_instead_is_named(content, words, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=words):
        load_tensors(tmp_path / "x.safetensors")


def test_no_link_is_followed_when_a_file_is_written(tmp_path):
    (tmp_path / "elsewhere").write_text("mine")
    (tmp_path / "x.json.part").symlink_to(tmp_path / "elsewhere")
    write_atomically(tmp_path / "x.json", b"{}")
    assert (tmp_path / "elsewhere").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "x.json", "x.json.part"]


@pytest.mark.parametrize("links", [True, False])
def test_a_new_file_takes_the_first_free_name_and_is_whole_at_once(tmp_path, monkeypatch, links):
    if not links:

        def refused(source, target):
            raise PermissionError

        monkeypatch.setattr(os, "link", refused)
    names = [tmp_path / f"{i}.png" for i in range(4)]
    names[0].write_bytes(b"mine")
    assert [write_new(names, content) for content in (b"one", b"two")] == names[1:3]
    assert [path.read_bytes() for path in names[:3]] == [b"mine", b"one", b"two"]

    def killed(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "link", killed)
    with pytest.raises(KeyboardInterrupt):
        write_new(names, b"three")
    assert sorted(tmp_path.iterdir()) == names[:3]
    with pytest.raises(UserError, match=r"0\.png/x: cannot be written"):
        write_new([names[0] / "x"], b"")
