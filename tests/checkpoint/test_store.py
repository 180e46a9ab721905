"""Checkpoints: round trip, atomic writing, and what a load refuses."""

from __future__ import annotations

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
from mindpangu.checkpoint.store import load_into, load_tensors, save_checkpoint, verify, write_atomically
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
