"""Exported nets, read back by MindSpore's own loader, equal the Cells; what cannot be is refused in one line."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mindpangu.convert import to_mindir
from mindpangu.errors import UserError


def test_every_net_computes_what_its_cell_does(model_folder, tmp_path):
    import mindspore as ms
    from mindspore import Tensor, nn

    to_mindir.export_mindir(model_folder, tmp_path, "48x32", 2)
    described = json.loads((tmp_path / to_mindir.DESCRIPTION).read_text())["nets"]
    assert list(described) == ["text_encoders", "structure", "texture", "vae_decoder", "vae_encoder"]
    rng = np.random.default_rng(0)
    with to_mindir._own_operators():
        for name, net, inputs in to_mindir.nets(model_folder, "48x32", 2):
            given = [
                rng.integers(0, 9, value.shape).astype(value.dtype)
                if value.dtype == np.int32
                else rng.standard_normal(value.shape).astype(value.dtype)
                for value in inputs.values()
            ]
            tensors = [Tensor(value) for value in given]
            ours = net(*tensors)
            loaded = nn.GraphCell(ms.load(str(tmp_path / f"{name}.mindir")))(*tensors)
            ours, loaded = (one if isinstance(one, (tuple, list)) else [one] for one in (ours, loaded))
            assert [list(one.shape) for one in loaded] == [shape for _, shape in described[name]["outputs"]]
            for one, other in zip(ours, loaded):
                assert np.ptp(one.asnumpy()) > 0
                np.testing.assert_allclose(other.asnumpy(), one.asnumpy(), rtol=1e-5, atol=1e-5)
    assert {path.name for path in tmp_path.glob("tokenizer*.json")} == {"tokenizer.json", "tokenizer_2.json"}


def test_a_size_that_the_model_cannot_draw_is_refused(model_folder, tmp_path):
    with pytest.raises(UserError, match="size 50x50 is none of tiny's: 32x32, 48x32"):
        to_mindir.export_mindir(model_folder, tmp_path / "out", "50x50", 2)
    assert not (tmp_path / "out").exists()
