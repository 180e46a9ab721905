"""What of the operator package can be checked without CANN: names, registrations, the glue, the build's refusal."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess

import numpy as np
import pytest

from mindpangu import runtime
from mindpangu.errors import UserError
from tests.ascend_kernels.simulation import KERNELS, reference, settings

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
    of_host = re.findall(r'for \(const char\* (?:in|out)put : \{([^}]*)\}|(?:In|Out)put\("(\w+)"\)', host)
    assert re.findall(r"\w+", " ".join(" ".join(found) for found in of_host)) == inputs + outputs
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
    assert types == [*tensors[0], "int64_t", "double", "bool", *tensors[1], "int64_t*", "aclOpExecutor**"]
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

    def backward(q, k, v, do, lse_, delta, heads, scale, causal):
        assert (heads, round(scale, 6), causal) == (3, 0.3, False)
        products = (o * grad).reshape(2, 5, 3, 8).sum(-1).transpose(0, 2, 1)
        np.testing.assert_allclose(delta.asnumpy(), products, atol=1e-5)
        np.testing.assert_allclose(lse_.asnumpy(), lse, atol=1e-5)
        return tuple(reference(q.asnumpy(), k.asnumpy(), v.asnumpy(), tiling, do.asnumpy())[2:])

    out = Tensor(o.astype(np.float32)), Tensor(lse.astype(np.float32))
    dout = Tensor(grad), Tensor(np.zeros_like(lse, np.float32))
    for got, right in zip(gradients(backward, *map(Tensor, (q, k, v)), 3, 0.3, False, out, dout), wanted):
        np.testing.assert_allclose(got, right, atol=1e-5)


def test_the_operators_are_made_but_not_found_here(monkeypatch, tmp_path):
    from mindpangu.ascend_kernels import flash_attention

    for variable in ("ASCEND_CUSTOM_OPP_PATH", "ASCEND_OPP_PATH"):
        monkeypatch.delenv(variable, raising=False)
    assert flash_attention.operator() is flash_attention.operator()
    assert not flash_attention.installed()
    (tmp_path / "op_api").mkdir()
    monkeypatch.setenv("ASCEND_CUSTOM_OPP_PATH", str(tmp_path))
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


def test_attention_goes_to_our_kernel_where_it_is_asked_for_and_can(monkeypatch):
    """On a pretended Ascend: with the setting, in 16 bits, without a mask; else to MindSpore's own."""
    from mindspore import Tensor

    attention = importlib.import_module("mindpangu.ops.attention")  # the package has a function of this name
    monkeypatch.setattr(attention, "_on_ascend", lambda: True)
    monkeypatch.setattr(attention, "_kernel", lambda: lambda q, *_: (q * 0 + 2, None))
    monkeypatch.setattr(attention, "_with_own_kernel", lambda: runtime.ascend_attention() == "mindpangu")
    monkeypatch.setattr(attention, "_flash", lambda q, *_: q * 0 + 1)
    narrow, wide = (Tensor(np.ones((1, 4, 8), dtype)) for dtype in (np.float16, np.float32))

    def asked(x, mask=None):
        return float(attention.attention(x, x, x, heads=2, scale=1.0, mask=mask).asnumpy().flat[0])

    assert asked(narrow) == 1
    monkeypatch.setenv("MINDPANGU_ASCEND_ATTENTION", "mindpangu")
    assert asked(narrow) == 2
    assert asked(wide) == asked(narrow, Tensor(np.zeros((4, 4), np.float32))) == 1
    with pytest.raises(UserError, match=r"operator package is not installed; build it with .*build.sh --install"):
        runtime._check_kernels()
    monkeypatch.setenv("MINDPANGU_ASCEND_ATTENTION", "fast")
    with pytest.raises(UserError, match="unknown; allowed: mindspore, mindpangu"):
        runtime.ascend_attention()
