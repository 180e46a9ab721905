"""The AscendC kernels in the simulator: built with g++, called through ctypes, numpy in and out."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import Optional

import numpy as np

HERE = Path(__file__).parent / "simulator"
KERNELS = Path(__file__).parents[2] / "ascend_kernels" / "ascendc" / "flash_attention" / "op_kernel"


class Tiling(ctypes.Structure):
    """`AttentionTiling` of attention_tiling.h."""

    _fields_ = [
        *((name, ctypes.c_uint32) for name in ("batch", "heads", "queries", "keys", "width")),
        *((name, ctypes.c_uint32) for name in ("rows", "columns", "causal")),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_uint32) for name in ("span", "strip", "half_scores", "deterministic")),
    ]


class KernelError(Exception):
    """What the simulator found."""


ARCHITECTURES = {"910b": 2201, "910a": 1001}  # CANN's numbers of them


def build(
    source: str, to: Path, dtype: str = "half", kernels: Path = KERNELS, optimise: str = "-O2", chip: str = "910b"
) -> ctypes.CDLL:
    """A wrapper of the simulator's folder around the kernels, compiled for `dtype`, half or bfloat16_t, and a chip.

    Raises:
        KernelError: g++ refuses it.
    """
    library = to / f"{Path(source).stem}_{dtype}_{chip}.so"
    command = ["g++", "-std=c++17", optimise, "-march=native", "-Wall", "-Werror", "-shared", "-fPIC", "-pthread"]
    command += [
        f"-DDTYPE_Q={dtype}",
        f"-D__NPU_ARCH__={ARCHITECTURES[chip]}",
        f"-I{HERE}",
        f"-I{kernels}",
        f"-I{KERNELS.parent}",
        str(HERE / source),
        "-o",
        str(library),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise KernelError(done.stderr)
    return ctypes.CDLL(str(library))


def _call(library: ctypes.CDLL, arrays: list[np.ndarray], tiling: Tiling, cores: int, seed: int) -> None:
    error = ctypes.create_string_buffer(600)
    arrays = [np.ascontiguousarray(array) for array in arrays]
    pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in arrays]
    if library.simulate(*pointers, ctypes.byref(tiling), cores, seed, error, len(error)):
        raise KernelError(error.value.decode())


def settings(
    q: np.ndarray,
    k: np.ndarray,
    heads: int,
    tile: tuple[int, ...],
    causal: bool,
    scale: float,
    half: bool = False,
    deterministic: bool = False,
) -> Tiling:
    """The kernels' settings for q (N, S, H·D), k (N, T, H·D); `tile`: rows, columns, the forward's span and strip."""
    n, s, channels = q.shape
    rows, columns, span, strip = (*tile, 1, 8)[:4]
    return Tiling(
        n, heads, s, k.shape[1], channels // heads, rows, columns, int(causal), scale, span, strip, half, deterministic
    )


def forward(
    library: ctypes.CDLL, q: np.ndarray, k: np.ndarray, v: np.ndarray, tiling: Tiling, cores: int = 2, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """o, in q's 16-bit type, and the log-sum-exp (N, H, S) float32."""
    o, lse = np.empty_like(q), np.empty((q.shape[0], tiling.heads, q.shape[1]), np.float32)
    _call(library, [q, k, v, o, lse], tiling, cores, seed)
    return o, lse


def backward(
    library: ctypes.CDLL, inputs: list[np.ndarray], tiling: Tiling, cores: int = 2, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """dq, dk, dv, in q's 16-bit type; `inputs`: q, k, v, do, lse, delta."""
    outputs = [np.empty_like(array) for array in inputs[:3]]
    _call(library, [*inputs, *outputs], tiling, cores, seed)
    return outputs[0], outputs[1], outputs[2]


def rounded(x: np.ndarray, dtype: str) -> np.ndarray:
    """float → half as float16, bfloat16_t as its bits in uint16."""
    if dtype == "half":
        return x.astype(np.float16)
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def widened(x: np.ndarray) -> np.ndarray:
    """The numbers that `rounded` made, in float64."""
    if x.dtype == np.uint16:
        return (x.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return x.astype(np.float64)


def split(x: np.ndarray, heads: int) -> np.ndarray:
    """(N, S, H·D) → (N, H, S, D) in float64."""
    n, s, channels = x.shape
    return widened(x).reshape(n, s, heads, channels // heads).transpose(0, 2, 1, 3)


def join(x: np.ndarray) -> np.ndarray:
    """(N, H, S, D) → (N, S, H·D)."""
    n, h, s, d = x.shape
    return x.transpose(0, 2, 1, 3).reshape(n, s, h * d)


def reference(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, tiling: Tiling, do: Optional[np.ndarray] = None
) -> tuple[np.ndarray, ...]:
    """o and the log-sum-exp in float64, and with `do` dq, dk, dv too."""
    heads, scale = tiling.heads, tiling.scale
    q_, k_, v_ = (split(x, heads) for x in (q, k, v))
    scores = scale * q_ @ k_.swapaxes(-1, -2)
    if tiling.causal:
        scores = np.where(np.tril(np.ones(scores.shape[-2:], bool)), scores, -np.inf)
    top = scores.max(-1, keepdims=True)
    lse = top + np.log(np.exp(scores - top).sum(-1, keepdims=True))
    p = np.exp(scores - lse)
    out = (join(p @ v_), lse[..., 0])
    if do is None:
        return out
    do_ = split(do, heads)
    dp = do_ @ v_.swapaxes(-1, -2)
    ds = scale * p * (dp - (p * dp).sum(-1, keepdims=True))
    return (*out, join(ds @ k_), join(ds.swapaxes(-1, -2) @ q_), join(p.swapaxes(-1, -2) @ do_))


def error(got: np.ndarray, wanted: np.ndarray) -> float:
    """Relative, of 16-bit numbers to float64."""
    return float(np.linalg.norm(widened(got) - wanted) / np.linalg.norm(wanted))
