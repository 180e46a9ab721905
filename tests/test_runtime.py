"""The environment is set before MindSpore is imported, and what the user set stays."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from mindpangu import runtime
from mindpangu.errors import UserError

X86 = platform.machine().lower() in ("x86_64", "amd64")


def in_new_process(code: str, **environment: str) -> str:
    kept = {k: v for k, v in os.environ.items() if k != "ONEDNN_MAX_CPU_ISA"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**kept, **environment}, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.skipif(not X86, reason="the setting is for x86 processors")
def test_importing_mindpangu_limits_onednn_and_does_not_import_mindspore():
    code = "import mindpangu, os, sys; print(os.environ['ONEDNN_MAX_CPU_ISA'], 'mindspore' in sys.modules)"
    assert in_new_process(code) == "AVX2 False"


@pytest.mark.skipif(not X86, reason="the setting is for x86 processors")
def test_a_value_already_set_is_kept_and_reported():
    code = "import mindpangu; from mindpangu.runtime import settings; print(settings()[0])"
    assert in_new_process(code, ONEDNN_MAX_CPU_ISA="SSE41") == (
        "Setting(name='ONEDNN_MAX_CPU_ISA', value='SSE41', origin='you')"
    )


def test_workers_of_msrun_share_the_cores():
    code = (
        "import os; os.environ.pop('OMP_NUM_THREADS', None)\n"
        "from mindpangu import runtime; print(os.environ['OMP_NUM_THREADS'], runtime.cores())"
    )
    alone, cores = map(int, in_new_process(code).split())
    assert alone == cores
    for workers in (1, 2, 64):
        shared = in_new_process(code, MS_ROLE="MS_WORKER", MS_WORKER_NUM=str(workers)).split()[0]
        assert int(shared) == max(1, cores // workers)


def test_workers_of_msrun_wait_long_for_each_other():
    code = "import mindpangu, os; print(os.environ.get('HCCL_CONNECT_TIMEOUT'), os.environ.get('HCCL_EXEC_TIMEOUT'))"
    assert in_new_process(code, HCCL_CONNECT_TIMEOUT="600").startswith("600")
    assert in_new_process(code, MS_ROLE="MS_WORKER", HCCL_CONNECT_TIMEOUT="600", HCCL_EXEC_TIMEOUT="900") == "7200 900"
    assert in_new_process(code, MS_ROLE="MS_WORKER", HCCL_CONNECT_TIMEOUT="1200") == "1200 7200"


@pytest.mark.parametrize(("chip", "level"), [("ascend910b", "O1"), ("ascend910_93", "O1"), ("ascend910", "O0")])
def test_graphs_are_compiled_at_a_level_that_is_stated(monkeypatch, chip, level):
    monkeypatch.setattr(runtime, "ascend_chip", lambda: chip)
    assert runtime.jit_level() == level
    monkeypatch.setenv(runtime.JIT_LEVEL, "O0")
    assert runtime.jit_level() == "O0"
    monkeypatch.setenv(runtime.JIT_LEVEL, "O2")
    with pytest.raises(UserError, match="MINDPANGU_JIT_LEVEL=O2 is unknown; allowed: O1, O0"):
        runtime.jit_level()


def test_products_in_bf16_are_refused_where_the_cpu_has_none(monkeypatch):
    """oneDNN would fail in the first operator; fp32 and off are everywhere."""
    monkeypatch.setenv(runtime.CPU_OPERATORS, "bf16")
    monkeypatch.setattr(runtime, "_cpu_has", lambda *flags: False)
    assert runtime.cpu_precisions() == ("fp32", "off")
    with pytest.raises(UserError, match=r"bf16: this CPU lacks AVX512.*use fp32 or off"):
        runtime.cpu_operators()
    monkeypatch.setattr(runtime, "_cpu_has", lambda *flags: True)
    assert runtime.cpu_operators() == "bf16"


def test_an_unknown_device_is_refused():
    with pytest.raises(UserError, match="allowed: auto, CPU, Ascend"):
        runtime.start("GPU")


def test_start_is_idempotent_and_a_change_is_refused():
    assert runtime.start("CPU") == runtime.start() == "CPU"
    with pytest.raises(UserError, match="already runs on CPU"):
        runtime.start("Ascend")
