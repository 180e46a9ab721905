"""What of the operator package can be checked without CANN: names, registrations, the glue, the build's refusal."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from mindpangu import runtime
from mindpangu.errors import UserError
from tests.ascend_kernels.simulation import KERNELS, build, reference, settings
from tests.conftest import without_graphs

PACKAGE = KERNELS.parent
OPERATORS = {entry["op"]: entry for entry in json.loads((PACKAGE / "operators.json").read_text())}
STUBS = """
set(ASC_FOUND TRUE)
foreach(name npu_op_package npu_op_code_gen npu_op_library npu_op_kernel_sources npu_op_kernel_library
        npu_op_package_add)
    cmake_language(EVAL CODE "function(${name})\\nmessage(STATUS \\"${name} \\${ARGV}\\")\\nendfunction()")
endforeach()
"""


def snake(name):
    """CANN's rule: AbcDef → abc_def."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


@pytest.fixture(scope="module", autouse=True)
def started():
    runtime.start("CPU")


def names(entry):
    return [[x["name"] for x in entry[part]] for part in ("input_desc", "output_desc", "attr")]


@pytest.mark.parametrize("name", OPERATORS)
def test_prototype_kernel_and_json_name_the_same_things_in_the_same_order(name):
    inputs, outputs, attributes = names(OPERATORS[name])
    host = (PACKAGE / "op_host" / f"{snake(name)}.cpp").read_text()
    assert f"class {name} : public OpDef" in host and f"OP_ADD({name})" in host
    assert re.findall(r'Attr\("(\w+)"\)', host) == attributes
    host, chips = host.split("OpAICoreConfig coupled")
    of_host = re.findall(r'for \(const char\* (?:in|out)put : \{([^}]*)\}|(?:In|Out)put\("(\w+)"\)', host)
    assert re.findall(r"\w+", " ".join(" ".join(found) for found in of_host)) == inputs + outputs
    assert re.findall(r'"(\w+)"', re.sub(r"AddConfig.*", "", chips.partition("OP_ADD")[0])) == inputs + outputs
    kernel = (PACKAGE / "op_kernel" / f"{snake(name)}.cpp").read_text()
    entry = re.search(rf"void {snake(name)}\(([^)]*)\)", kernel).group(1)
    assert re.findall(r"GM_ADDR (\w+)", entry) == [*inputs, *outputs, "workspace", "tiling"]


@pytest.mark.parametrize("which", ["forward", "backward"])
def test_mindspores_code_generator_takes_the_registration(which):
    from mindspore.ops.operations._custom_ops_utils import CustomCodeGenerator

    from mindpangu.ascend_kernels import flash_attention

    info = getattr(flash_attention, f"{which}_registration")()
    name = {"forward": "MindpanguFlashAttention", "backward": "MindpanguFlashAttentionGrad"}[which]
    inputs, outputs, _ = names(OPERATORS[name])
    types = CustomCodeGenerator().get_api_types_by_reg_info(info)
    tensors = ["aclTensor*"] * len(inputs), ["aclTensor*"] * len(outputs)
    settings = ["int64_t", "double", *["bool"] * (2 if which == "forward" else 3)]
    assert types == [*tensors[0], *settings, *tensors[1], "int64_t*", "aclOpExecutor**"]
    assert CustomCodeGenerator().generate_callback_by_reg_info(f"aclnn{name}", info)
    assert [x["name"] for x in info["inputs"]] == inputs and [x["name"] for x in info["outputs"]] == outputs


def test_the_glue_asks_the_backward_operator_the_right_question():
    """With a float64 stand-in for it, whose delta must be the glue's."""
    from mindspore import Tensor

    from mindpangu.ascend_kernels.flash_attention import gradients

    rng = np.random.default_rng(0)
    q, k, v, grad = (rng.standard_normal((2, length, 24)).astype(np.float32) for length in (5, 7, 7, 5))
    tiling = settings(q, k, 3, (16, 16), False, 0.3)
    o, lse, *wanted = reference(q, k, v, tiling, grad)

    def backward(q, k, v, do, lse_, delta, heads, scale, *kind):
        assert (heads, round(scale, 6), *kind) == (3, 0.3, False, False, True)  # no half scores of float32
        products = (o * grad).reshape(2, 5, 3, 8).sum(-1).transpose(0, 2, 1)
        np.testing.assert_allclose(delta.asnumpy(), products, atol=1e-5)
        np.testing.assert_allclose(lse_.asnumpy(), lse, atol=1e-5)
        return tuple(reference(q.asnumpy(), k.asnumpy(), v.asnumpy(), tiling, do.asnumpy())[2:])

    out = Tensor(o.astype(np.float32)), Tensor(lse.astype(np.float32))
    dout = Tensor(grad), Tensor(np.zeros_like(lse, np.float32))
    for got, right in zip(gradients(backward, *map(Tensor, (q, k, v)), 3, 0.3, False, True, True, out, dout), wanted):
        np.testing.assert_allclose(got, right, atol=1e-5)


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """Both operators as a library for MindSpore on a CPU."""
    folder = tmp_path_factory.mktemp("stand-in")
    build("custom.cpp", folder)
    return folder / "custom_half_910b.so"


@pytest.mark.parametrize("jit_level", ["O0", "O1"])
def test_the_operators_are_called_and_differentiated_in_graph_mode(jit_level, stand_in, monkeypatch):
    """Two of different settings in one graph, the second fed by the first; numbers against float64."""
    import mindspore as ms
    from mindspore import Tensor

    from mindpangu.ascend_kernels import flash_attention

    flash_attention.operator.cache_clear()
    for name, function in (("FORWARD", "Forward"), ("BACKWARD", "Backward")):
        monkeypatch.setattr(flash_attention, name, f"{stand_in}:{function}")
        monkeypatch.setattr(flash_attention, f"{name.lower()}_registration", lambda: None)
    few, many = flash_attention.operator(2, 0.5, False, True), flash_attention.operator(4, 0.3, True, False)
    rng = np.random.default_rng(0)
    q, k, v, weight = (rng.standard_normal((2, length, 8)).astype(np.float32) for length in (3, 5, 5, 3))

    @ms.jit(jit_level=jit_level)
    def both(q, k, v):
        return many(few(q, k, v, 2, 0.5, False, True)[0], k, v, 4, 0.3, True, False)

    def total(q, k, v):
        return (both(q, k, v)[0] * Tensor(weight)).sum()

    inner, outer = settings(q, k, 2, (16, 16), False, 0.5), settings(q, k, 4, (16, 16), True, 0.3)
    middle = reference(q, k, v, inner)[0]
    o, lse, d_middle, dk, dv = reference(middle.astype(np.float32), k, v, outer, weight)
    _, _, dq, more_k, more_v = reference(q, k, v, inner, d_middle.astype(np.float32))
    got = both(*map(Tensor, (q, k, v)))
    for one, right in zip(
        (*got, *ms.grad(total, (0, 1, 2))(*map(Tensor, (q, k, v)))), (o, lse, dq, dk + more_k, dv + more_v)
    ):
        np.testing.assert_allclose(one.asnumpy(), right, atol=1e-5)
    flash_attention.operator.cache_clear()


def test_attributes_travel_by_name_for_graphs_of_every_level():
    """GE (O2) takes the package's own names, and makes constant inputs that are named as attributes attributes."""
    from mindpangu.ascend_kernels import flash_attention

    forward = flash_attention.operator(2, 0.5, False, True)
    inputs, outputs, attributes = names(OPERATORS["MindpanguFlashAttention"])
    assert forward.attrs["reg_op_name"] == "MindpanguFlashAttention"
    assert forward.attrs["input_names"] == inputs + attributes
    assert forward.attrs["pure_input_names"] == inputs and forward.attrs["attr_names"] == attributes
    assert forward.attrs["output_names"] == outputs


def test_the_operators_are_made_but_not_found_here(monkeypatch, tmp_path):
    from mindpangu.ascend_kernels import flash_attention

    for variable in ("ASCEND_CUSTOM_OPP_PATH", "ASCEND_OPP_PATH"):
        monkeypatch.delenv(variable, raising=False)
    assert flash_attention.operator(2, 0.5, False, True) is flash_attention.operator(2, 0.5, False, True)
    assert not flash_attention.installed()
    include = tmp_path / "op_api" / "include"
    include.mkdir(parents=True)
    monkeypatch.setenv("ASCEND_CUSTOM_OPP_PATH", str(tmp_path))
    assert not flash_attention.installed()  # a package, as MindSpore's own, but not ours
    (include / "aclnn_mindpangu_flash_attention.h").touch()
    assert flash_attention.installed()


def test_without_cann_the_build_says_what_is_missing():
    environment = {name: value for name, value in os.environ.items() if name != "ASCEND_HOME_PATH"}
    done = subprocess.run([PACKAGE / "build.sh"], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("mindpangu: the attention kernels cannot be built here; missing: CANN's environment")
    assert len(done.stderr.splitlines()) == 1
    assert not (PACKAGE / "build_out").exists()


@pytest.mark.skipif(shutil.which("cmake") is None, reason="no cmake")
def test_cmake_reads_the_project_with_stand_ins_for_canns_functions(tmp_path):
    """The lists are sound CMake and name every source; whether CANN's own functions take them is not known here."""
    modules = tmp_path / "cann" / "compiler" / "tikcpp" / "ascendc_kernel_cmake"
    modules.mkdir(parents=True)
    (modules / "ASCConfig.cmake").write_text(STUBS)
    shutil.copytree(PACKAGE, tmp_path / "package")
    environment = {**os.environ, "ASCEND_HOME_PATH": str(tmp_path / "cann")}
    done = subprocess.run(
        ["cmake", "--preset", "default"],
        cwd=tmp_path / "package",
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "npu_op_package mindpangu;TYPE;RUN;" in done.stdout
    generated = next(line for line in done.stdout.splitlines() if "npu_op_code_gen" in line)
    for name in OPERATORS:
        assert f"op_host/{snake(name)}.cpp" in generated
    assert "LIBRARY;cust_opapi;cust_op_proto;cust_optiling;ascendc_kernels" in done.stdout


def test_mindspore_still_compiles_no_tik_kernels():
    """Why there is none for the 910A (ascend_kernels/README.md); where this fails, one could be called again."""
    import mindspore

    compilers = Path(mindspore.__file__).parent / "_extends" / "parallel_compile"
    assert (compilers / "akg_compiler").is_dir() and not (compilers / "tbe_compiler").exists()


@pytest.fixture
def ascend(monkeypatch):
    """ops.attention as on a pretended Ascend of the generation that `ascend.chip` names; what it narrows to is half."""
    attention = importlib.import_module("mindpangu.ops.attention")  # the package has a function of this name
    attention.chip = "ascend910b"
    monkeypatch.setattr(runtime, "ascend_chip", lambda: attention.chip)
    monkeypatch.setattr(attention, "_ascend_back_end", runtime.ascend_attention)
    monkeypatch.setattr(attention.mstype, "bfloat16", attention.mstype.float16)  # a CPU does not compute in bfloat16
    yield attention
    del attention.chip


def test_attention_goes_to_our_kernel_where_it_is_asked_for_and_can(ascend, monkeypatch):
    """With the setting and without a mask for each row; in 16 bits; causal where it is said. Else MindSpore's own."""
    from mindspore import Tensor

    seen = []

    def kernel(q, k, v, heads, scale, causal, half_scores):
        seen.append((str(q.dtype), str(k.dtype), str(v.dtype), causal, half_scores))
        return q * 0 + 2, None

    monkeypatch.setattr(ascend, "_kernel", lambda *settings: kernel)
    monkeypatch.setattr(ascend, "_flash", lambda q, *_: q * 0 + 1)
    narrow, wide = (Tensor(np.ones((1, 4, 8), dtype)) for dtype in (np.float16, np.float32))

    def asked(x, **kind):
        out = ascend.attention(x, x, x, heads=2, scale=1.0, **kind)
        assert out.dtype == x.dtype
        return float(out.asnumpy().flat[0])

    assert asked(narrow) == asked(wide) == 1
    monkeypatch.setenv("MINDPANGU_ASCEND_ATTENTION", "mindpangu")
    assert asked(narrow) == asked(wide, causal=True) == 2
    assert seen == [("Float16",) * 3 + (False, True), ("Float16",) * 3 + (True, True)]
    assert asked(wide, forbidden=Tensor(np.zeros((1, 1, 1, 4), bool))) == 1


def test_which_attention_a_chip_has(ascend, monkeypatch):
    """The 910B MindSpore's unless told otherwise, the 910A composed operators; checked at the start, in one line."""
    assert runtime.ascend_attention() == "mindspore"
    runtime._check_ascend()
    ascend.chip = "ascend910"
    assert runtime.ascend_attention() == "composed"
    runtime._check_ascend()
    monkeypatch.setenv("MINDPANGU_ASCEND_ATTENTION", "mindspore")
    with pytest.raises(UserError, match="=mindspore is for the 910B and later; a 910A has composed and mindpangu"):
        runtime._check_ascend()
    ascend.chip = "ascend910b"
    monkeypatch.setenv("MINDPANGU_ASCEND_ATTENTION", "mindpangu")
    with pytest.raises(UserError, match=r"operator package is not installed; build it with .*build.sh --install"):
        runtime._check_ascend()
    assert runtime.ascend_scores() == "half"
    with monkeypatch.context() as patch:
        patch.setenv("MINDPANGU_ASCEND_SCORES", "int8")
        with pytest.raises(UserError, match="unknown; allowed: half, fp32"):
            runtime.ascend_scores()
    monkeypatch.setenv("MINDPANGU_ASCEND_ATTENTION", "fast")
    with pytest.raises(UserError, match="unknown; allowed: mindspore, mindpangu, composed"):
        runtime.ascend_attention()


@pytest.mark.parametrize("causal", [False, True])
def test_a_910as_kernels_are_given_whole_fractals(ascend, monkeypatch, causal):
    """What pads channels and queries changes neither the result nor a gradient."""
    import mindspore as ms
    from mindspore import Tensor

    shapes = []

    def kernel(q, k, v, heads, scale, causal, half_scores):
        shapes.append((q.shape, k.shape, v.shape))
        wide = (x.astype("float32") for x in (q, k, v))
        return ascend._composed(*wide, heads, scale, causal, None).astype(q.dtype), None

    ascend.chip = "ascend910"
    monkeypatch.setattr(ascend, "_kernel", lambda *settings: kernel)
    monkeypatch.setattr(ascend, "_coupled", lambda: True)
    monkeypatch.setenv("MINDPANGU_ASCEND_ATTENTION", "mindpangu")
    rng = np.random.default_rng(0)
    q, k, v, weight = (Tensor(rng.standard_normal((2, n, 120)).astype(np.float16)) for n in (21, 13, 13, 21))

    def ours(q, k, v):
        return (ascend.attention(q, k, v, heads=3, scale=0.2, causal=causal) * weight).astype("float32").sum()

    def composed(q, k, v):
        wide = (x.astype("float32") for x in (q, k, v))
        return (ascend._composed(*wide, 3, 0.2, causal, None) * weight).sum()

    with without_graphs():
        got, right = (ms.value_and_grad(function, (0, 1, 2))(q, k, v) for function in (ours, composed))
    assert shapes[0] == ((2, 32, 144), (2, 13, 144), (2, 13, 144))
    for one, other in zip((got[0], *got[1]), (right[0], *right[1])):
        np.testing.assert_allclose(one.asnumpy(), other.asnumpy(), atol=1e-2 * max(1, np.abs(other.asnumpy()).max()))


@pytest.mark.parametrize("dim", [16, 40])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("some_forbidden", [False, True])
def test_what_mindspores_flash_attention_is_given(ascend, monkeypatch, dim, causal, some_forbidden):
    """With its documented meaning done in float32: the composed attention's result, from heads of a width it takes."""
    from mindspore import Tensor, ops

    def documented(q, k, v, heads, *, attn_mask, scalar_value, input_layout):
        assert input_layout == "BSND" and q.shape[-1] % 16 == 0 and q.shape[2] == heads
        assert str(q.dtype) == "Float16"
        q, k, v = (x.astype("float32").transpose((0, 2, 1, 3)) for x in (q, k, v))
        scores = ops.BatchMatMul(transpose_b=True)(q, k) * scalar_value
        if attn_mask is not None:
            assert attn_mask.shape in {(5, 7), (2, 1, 5, 7)} and str(attn_mask.dtype) == "Bool"
            scores = ops.masked_fill(scores, attn_mask, -1e9)
        return ops.BatchMatMul()(ops.softmax(scores, -1), v).transpose((0, 2, 1, 3)).astype("float16")

    monkeypatch.setattr(ascend.ops, "flash_attention_score", documented)
    rng = np.random.default_rng(dim)
    q, k, v = (Tensor(rng.standard_normal((2, n, 3 * dim)).astype(np.float32)) for n in (5, 7, 7))
    forbidden = Tensor(np.arange(7) > np.array([[3], [6]]))[:, None, None] if some_forbidden else None
    out = ascend.attention(q, k, v, heads=3, scale=dim**-0.5, causal=causal, forbidden=forbidden)
    expected = ascend._composed(q, k, v, 3, dim**-0.5, causal, forbidden)
    np.testing.assert_allclose(out.asnumpy(), expected.asnumpy(), atol=4e-3)
