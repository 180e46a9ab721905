"""Nets in 16 bits: float32 goes in and comes out, between them activations are narrow, and the numbers are close."""

import numpy as np
import pytest
from mindspore import Tensor, nn
from mindspore import dtype as mstype

from mindpangu import ops, runtime
from mindpangu.errors import UserError
from mindpangu.models.clip import text_encoder
from mindpangu.models.controlnet import ControlNet
from mindpangu.models.unet import UNet
from mindpangu.models.vae import AutoencoderKL
from mindpangu.spec import ControlNetSpec, TextSpec, UNetSpec, VAESpec

NARROW = {"bf16": (mstype.bfloat16, 2**-8), "fp16": (mstype.float16, 2**-11)}
SCALE = 1024.0
UNET = UNetSpec(4, 4, 32, (1, 2), 1, (0, 1), 16, 24, 12, 8, patch=2)
TEXTS = {
    kind: TextSpec(50, 3, 32, 2, 2, "gelu", kind, 8, None if kind == "last" else 12, pad_id=1)
    for kind in ("last", "penultimate", "bert")
}


@pytest.fixture(scope="module", autouse=True)
def started():
    runtime.start("CPU")


def inputs(*shapes):
    rng = np.random.default_rng(0)
    return [Tensor(rng.standard_normal(shape).astype(np.float32)) for shape in shapes]


def unet_inputs():
    x, context, vector = inputs((2, 4, 8, 8), (2, 5, 24), (2, 12))
    return x, Tensor(np.array([999.0, 3.0], np.float32)), context, vector


def control_inputs():
    x, t, context, vector = unet_inputs()
    return x, t, inputs((1, 3, 8, 8))[0], context, vector


def ids():
    return (Tensor(np.array([[5, 6, 7, 3, 1, 1, 1, 1], [9, 8, 3, 1, 1, 1, 1, 1]], np.int32)),)


NETS = {
    "unet": (lambda: UNet(UNET), unet_inputs),
    "controlnet": (lambda: ControlNet(ControlNetSpec(UNET, 3, (8, 8))), control_inputs),
    "vae": (lambda: AutoencoderKL(VAESpec(4, 16, (1, 2), 1, patch=2, norm_groups=4)), lambda: inputs((2, 4, 4, 4))),
    **{kind: (lambda spec=spec: text_encoder(spec), ids) for kind, spec in TEXTS.items()},
}


def values(name, dtype, monkeypatch):
    """The net's outputs, float32 arrays; its weights, none of which is zero, are the same for each dtype."""
    monkeypatch.setenv(runtime.COMPUTE_DTYPE, dtype)
    make, given = NETS[name]
    net, rng = make().set_train(False), np.random.default_rng(1)
    for parameter in net.get_parameters():
        size = 0.3 if parameter.ndim > 1 else 0.1
        drawn = rng.standard_normal(parameter.shape) * size / max(1, np.sqrt(np.prod(parameter.shape[1:]) / 8))
        parameter.set_data(Tensor((drawn + (parameter.name.endswith("gamma"))).astype(np.float32)))
    found = net(*given())
    found = found if isinstance(found, tuple) else (found,)
    assert {str(one.dtype) for one in found} == {"Float32"}
    return [one.asnumpy() for one in found]


@pytest.mark.parametrize("own", ["off", "fp32"])
@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("name", NETS)
def test_a_net_in_16_bits_is_near_the_net_in_32(name, dtype, own, monkeypatch):
    """And not equal to it, but for an autoencoder, whose activations leave fp16's range."""
    monkeypatch.setenv(runtime.CPU_OPERATORS, own)
    wide, narrow = values(name, "fp32", monkeypatch), values(name, dtype, monkeypatch)
    errors = [np.linalg.norm(n - w) / np.linalg.norm(w) for n, w in zip(narrow, wide)]
    if (name, dtype) == ("vae", "fp16"):
        assert max(errors) == 0
    else:
        assert 0 < max(errors) < 8 * NARROW[dtype][1]


@pytest.mark.parametrize("dtype", NARROW)
def test_between_the_layers_activations_are_narrow(dtype, monkeypatch):
    """Every convolution and dense layer of a UNet gets them so, and a weight of the same dtype."""
    seen = set()

    def spied(layer):
        def spy(x, weight, *rest):
            seen.add((x.dtype, weight.dtype))
            return layer(x, weight, *rest)

        return spy

    for name in ("conv2d", "dense"):
        monkeypatch.setattr(ops, name, spied(getattr(ops, name)))
    with_pynative(monkeypatch, lambda: values("unet", dtype, monkeypatch))
    assert seen == {(NARROW[dtype][0],) * 2}


def with_pynative(monkeypatch, run):
    import mindspore as ms

    ms.set_context(mode=ms.PYNATIVE_MODE)
    try:
        return run()
    finally:
        ms.set_context(mode=ms.GRAPH_MODE)


def test_weights_get_float32_gradients_near_those_of_a_net_in_float32(monkeypatch):
    """In fp16: for bfloat16 MindSpore's CPU lacks a sum."""
    import mindspore as ms

    monkeypatch.setenv(runtime.CPU_OPERATORS, "fp32")

    def gradients(chosen):
        monkeypatch.setenv(runtime.COMPUTE_DTYPE, chosen)
        ms.set_seed(4)
        net = UNet(UNET)
        for parameter in net.get_parameters():  # zeros would stop the gradient
            drawn = np.random.default_rng(len(parameter.name)).standard_normal(parameter.shape) * 0.05
            parameter.set_data(Tensor((drawn + parameter.name.endswith("gamma")).astype(np.float32)))

        class Loss(nn.Cell):
            def __init__(self):
                super().__init__()
                self.net = net

            def construct(self, *given):
                return (self.net(*given) ** 2).mean() * SCALE  # without which fp16 loses the smallest

        loss = Loss().set_train()
        return ms.grad(loss, None, ms.ParameterTuple(loss.trainable_params()))(*unet_inputs())

    wide, narrow = gradients("fp32"), gradients("fp16")
    assert {str(one.dtype) for one in narrow} == {"Float32"}
    wide, narrow = (np.concatenate([one.asnumpy().ravel() for one in each]) for each in (wide, narrow))
    assert 0 < np.linalg.norm(narrow - wide) / np.linalg.norm(wide) < 8 * NARROW["fp16"][1]


def test_what_is_chosen_and_refused(monkeypatch):
    assert runtime.compute_dtype() == "fp32" and not runtime.multiplies_in_fp16()
    monkeypatch.setenv(runtime.COMPUTE_DTYPE, "fp16")
    assert runtime.compute_dtype() == "fp16" and runtime.multiplies_in_fp16()
    monkeypatch.setenv(runtime.COMPUTE_DTYPE, "int4")
    with pytest.raises(UserError, match="MINDPANGU_COMPUTE_DTYPE=int4 is unknown; allowed: fp32, bf16, fp16"):
        runtime.compute_dtype()
    monkeypatch.delenv(runtime.COMPUTE_DTYPE)
    monkeypatch.setattr(runtime, "_device", "Ascend")
    for chip, default in (("ascend910b", "bf16"), ("ascend910", "fp16")):
        monkeypatch.setattr(runtime, "ascend_chip", lambda chip=chip: chip)
        assert runtime.compute_dtype() == default
    monkeypatch.setenv(runtime.COMPUTE_DTYPE, "bf16")
    with pytest.raises(UserError, match="bf16 is for the 910B and later; a 910A has fp16 and fp32"):
        runtime.compute_dtype()
    monkeypatch.setenv(runtime.COMPUTE_DTYPE, "fp32")
    assert runtime.multiplies_in_fp16()  # a 910A has no other products
