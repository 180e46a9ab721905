"""The forward kernel's tiling in Triton: front and middle end only, for a second opinion by Huawei's own compiler.

Needs triton-ascend, ascendnpu-ir and torch in an environment of its own, which `.ci/ascend-check` makes. A program that
prints a line of JSON for each check:

    TRITON_INTERPRET=1 python ascend_kernels/triton_check.py numerics   # in Triton's interpreter, on the CPU
    python ascend_kernels/triton_check.py lower                         # TTIR → Linalg → HIVM, Ascend 910B1 to 910B4

`lower` ends before machine code: the compiler's last stage is closed and absent from its package.
"""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import triton
import triton.language as tl
from triton.language import constexpr

TARGETS = ("Ascend910B1", "Ascend910B2", "Ascend910B3", "Ascend910B4")
LAST_STAGE = "hivmc run fails"  # what it says where only the absent last stage is left


@triton.jit
def attend(q, k, v, o, scale, queries, keys, ROWS: constexpr, COLUMNS: constexpr, WIDTH: constexpr, PADDED: constexpr):
    """One block of rows of one head: q, o (batch·heads, S, D), k, v (batch·heads, T, D), all contiguous."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channels = tl.arange(0, PADDED)
    head = tl.program_id(1)
    inside = channels[None, :] < WIDTH
    at = head * queries * WIDTH + rows[:, None] * WIDTH + channels[None, :]
    mine = tl.load(q + at, mask=(rows[:, None] < queries) & inside, other=0.0)
    maximum = tl.full([ROWS], -1e30, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    picture = tl.zeros([ROWS, PADDED], tl.float32)
    for first in range(0, keys, COLUMNS):
        columns = first + tl.arange(0, COLUMNS)
        there = head * keys * WIDTH + columns[:, None] * WIDTH + channels[None, :]
        seen = (columns[:, None] < keys) & inside
        scores = tl.dot(mine, tl.trans(tl.load(k + there, mask=seen, other=0.0))) * scale
        scores = tl.where(columns[None, :] < keys, scores, -1e30)
        fresh = tl.maximum(maximum, tl.max(scores, 1))
        weights = tl.exp(scores - fresh[:, None])
        factor = tl.exp(maximum - fresh)
        total = total * factor + tl.sum(weights, 1)
        values = tl.load(v + there, mask=seen, other=0.0)
        picture = picture * factor[:, None] + tl.dot(weights.to(values.dtype), values)
        maximum = fresh
    picture = picture / total[:, None]
    tl.store(o + at, picture.to(o.dtype.element_ty), mask=(rows[:, None] < queries) & inside)


def numerics() -> Iterator[dict[str, Any]]:
    """Largest errors against float64, for tails of every kind."""
    import torch

    for heads, queries, keys, width in ((2, 200, 77, 64), (1, 130, 257, 40), (2, 64, 64, 128), (1, 33, 100, 160)):
        torch.manual_seed(0)
        q, k, v = (torch.randn(heads, length, width).half() for length in (queries, keys, keys))
        o, scale, rows = torch.empty_like(q), width**-0.5, 32
        padded = 2 ** math.ceil(math.log2(width))
        grid = (-(-queries // rows), heads)
        attend[grid](q, k, v, o, scale, queries, keys, ROWS=rows, COLUMNS=32, WIDTH=width, PADDED=padded)
        right = torch.softmax(scale * q.double() @ k.double().transpose(1, 2), -1) @ v.double()
        error = ((o.double() - right).norm() / right.norm()).item()
        yield {"check": "numerics", "shape": [heads, queries, keys, width], "relative_error": error}


def linalg(rows: int, columns: int, width: int) -> str:
    """The kernel at one tile as Triton hands it to Huawei's compiler."""
    from triton._C.libtriton import ir
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, make_backend

    tensors = dict.fromkeys("qkvo", "*fp16")
    constants = {"ROWS": rows, "COLUMNS": columns, "WIDTH": width, "PADDED": 2 ** math.ceil(math.log2(width))}
    source = ASTSource(
        fn=attend,
        signature={**tensors, "scale": "fp32", "queries": "i32", "keys": "i32"},
        constants=constants,
    )
    backend = make_backend(GPUTarget("npu", TARGETS[0], 0))
    options = backend.parse_options({})
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    module = source.make_ir(options, backend.get_codegen_implementation(), backend.get_module_map(), context)
    stages: dict[str, Any] = {}
    backend.add_stages(stages, options)
    metadata: dict[str, Any] = {"target": backend.target, "hash": "", **vars(options)}
    for stage in ("ttir", "ttadapter"):
        module = stages[stage](module, metadata)
    return str(module)


def compile_for(target: str, text: str) -> tuple[bool, str]:
    """Whether the compiler got as far as the stage that is absent; what it said."""
    compiler = Path(importlib.util.find_spec("ascendnpuir").origin).parent / "bin" / "bishengir-compile"  # type: ignore
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.mlir"
        source.write_text(text, encoding="utf-8")
        options = ["--enable-hfusion-compile=true", "--enable-hivm-compile=true", "--enable-triton-kernel-compile=true"]
        options += ["--enable-auto-multi-buffer=True", "--enable-auto-bind-sub-block=True", f"--target={target}"]
        done = subprocess.run(
            [str(compiler), str(source), *options, "-o", str(Path(folder) / "kernel")],
            capture_output=True,
            text=True,
            check=False,
        )
    said = [line.split("error: ", 1)[1] for line in (done.stdout + done.stderr).splitlines() if "error: " in line]
    return all(LAST_STAGE in line for line in said), "; ".join(said)


def lower() -> Iterator[dict[str, Any]]:
    """For each target and tile: whether the compiler fits it, and what it says where not."""
    for width in (64, 128):
        for rows, columns in ((32, 32), (64, 64), (64, 128), (96, 128), (128, 64), (128, 128), (128, 256), (256, 128)):
            text = linalg(rows, columns, width)
            for target in TARGETS:
                fits, said = compile_for(target, text)
                yield {
                    "check": "lower",
                    "target": target,
                    "tile": [rows, columns, width],
                    "fits": fits,
                    "said": said[:300],
                }


def main(which: str) -> None:
    """Print the checks' lines."""
    for line in {"numerics": numerics, "lower": lower}[which]():
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
