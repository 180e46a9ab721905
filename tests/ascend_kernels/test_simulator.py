"""Bugs put into the kernels' sources, one at a time: the simulator, or the numbers, must give each away."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest

from tests.ascend_kernels.simulation import (
    KERNELS,
    KernelError,
    backward,
    build,
    forward,
    reference,
    rounded,
    settings,
    split,
    widened,
)

FORWARD, BACKWARD = "split_forward.h", "split_backward.h"
CUBE, VECTOR, MULTIPLIER = "attention_cube.h", "attention_vector.h", "multiplier.h"
CORE, COUPLED_FORWARD, COUPLED_BACKWARD = "coupled_core.h", "coupled_forward.h", "coupled_backward.h"

# What is wrong; file, text, what stands there instead; what is said; and, where it matters, the type.
BUGS = [
    ("a vector instruction does not wait for the one before", FORWARD,
     "Muls(scores, scores, S(t_.scale), size);\n        PipeBarrier<PIPE_V>();",
     "Muls(scores, scores, S(t_.scale), size);", "may still be writing"),
    ("exp does not wait for the cast", FORWARD,
     "Cast(strip, scores, RoundMode::CAST_NONE, rows * visible.whole);\n            PipeBarrier<PIPE_V>();",
     "Cast(strip, scores, RoundMode::CAST_NONE, rows * visible.whole);", "may still be writing"),
    ("products of a span are not summed", FORWARD, "n16, i == 0);", "n16, true);", "WRONG"),
    ("sums in L0C do not wait for each other", MULTIPLIER, "PipeBarrier<PIPE_M>();", "", "may still be writing"),
    ("a tile is never enqueued", FORWARD, "keys_in_.EnQue(keys);", "", "DeQue: nothing is enqueued"),
    ("a tile is used while it is enqueued", FORWARD,
     "scores = scores_in_.template DeQue<S>();\n            const Visible", "const Visible", "which is enqueued"),
    ("a tile is never freed", FORWARD, "keys_in_.FreeTensor(keys);", "", "AllocTensor: all 2 buffers"),
    ("a tile is still in use at the end", FORWARD, "        queries_in_.FreeTensor(queries);\n    }",
     "        if (line_ + rows_ < t_.heads * t_.queries) {\n"
     "            queries_in_.FreeTensor(queries);\n        }\n    }",
     "ends, and .* in use"),
    ("a tile is freed twice", FORWARD, "values_in_.FreeTensor(values);",
     "values_in_.FreeTensor(values);\n        values_in_.FreeTensor(values);", "FreeTensor: .* is not in use"),
    ("a tile is used after it was freed", MULTIPLIER,
     "        Mmad(product, left, right, shape);\n        left_.FreeTensor(left);",
     "        left_.FreeTensor(left);\n        Mmad(product, left, right, shape);", "which is free"),
    ("the cube never says that scores are there", FORWARD,
     "CrossCoreSetFlag<PAIRED, PIPE_FIX>(SCORES);", "", "deadlock"),
    ("it says twice that products are", FORWARD, "CrossCoreSetFlag<PAIRED, PIPE_FIX>(PRODUCTS);",
     "CrossCoreSetFlag<PAIRED, PIPE_FIX>(PRODUCTS);\n        CrossCoreSetFlag<PAIRED, PIPE_FIX>(PRODUCTS);",
     "still set|nothing has written"),
    ("it does not wait for probabilities", FORWARD, "CrossCoreWaitFlag(PROBABILITIES);", "",
     "nothing has written|may still be"),
    ("the flag is set before the copy it stands for", FORWARD, "CrossCoreSetFlag<PAIRED, PIPE_MTE3>(PROBABILITIES);",
     "CrossCoreSetFlag<PAIRED, PIPE_V>(PROBABILITIES);", "may still be writing"),
    ("a flag that does not exist", CUBE, "PRODUCTS = 2;", "PRODUCTS = 12;", "flag 12; 0 to 10"),
    ("both slots of the workspace are one", FORWARD, "scores_[slot(j) + first], scores",
     "scores_[first], scores", "may still be"),
    ("more UB than there is", FORWARD, "pipe.InitBuffer(scores_in_, 2,", "pipe.InitBuffer(scores_in_, 255,",
     "InitBuffer: .* of UB in use"),
    ("more L0C than there is", FORWARD, "pipe.InitBuffer(product_, 2,", "pipe.InitBuffer(product_, 40,",
     "InitBuffer: .* of L0C in use"),
    ("a buffer of no whole blocks", FORWARD, "line = up(half, BLOCK) * sizeof(float);",
     "line = (up(half, BLOCK) + 1) * sizeof(float);", "not a positive multiple of 32"),
    ("an operand that is not aligned", VECTOR, "tile[c], tile[c], numbers, mask, rows, strides",
     "tile[c + 1], tile[c + 1], numbers, mask, rows, strides", "not a multiple of 32"),
    ("keys are read beyond the last", FORWARD, "load_tile(keys, k_[key_ + uint64_t(j * seen_ + first) * pitch_], n,",
     "load_tile(keys, k_[key_ + uint64_t(j * seen_ + first) * pitch_], t_.columns,", "of k, whose tensor has"),
    ("what pads a tile is left as it was", CUBE, "InitConstValue(words[(whole_rows - FRACTAL) * FRACTAL], last);", "",
     "which nothing has written"),
    ("a sum begins with what L0C held", BACKWARD, "n16, j == begin_);", "n16, false);", "which nothing has written"),
    ("more numbers than an instruction takes", VECTOR, "mask = smaller(LANES<S>, columns - c);",
     "mask = columns - c;", "mask"),
    ("a result is written twice", FORWARD, "o_[query_ + uint64_t(own_) * pitch_]", "o_[query_]", "a second time"),
    ("a row is never written", FORWARD, "store_rows(lse_[line_ + own_], line, 1, count_, up(count_, BLOCK), count_);",
     "store_rows(lse_[line_ + own_], line, 1, count_ - 1, up(count_, BLOCK), count_);", "was never written"),
    ("the target's type is not asked for", CUBE, "store.quantPre = QuantMode_t::F322F16;", "", "Fixpipe: quantPre"),
    ("bfloat16_t is transposed as it is", MULTIPLIER,
     "auto source = b.template ReinterpretCast<half>();\n        LoadData2DParams",
     "auto source = b.template ReinterpretCast<T>();\n        LoadData2DParams",
     "no matching function", "bfloat16_t"),
    ("a type that an instruction does not take", FORWARD, "Cast(out, picture, RoundMode::CAST_RINT, count_ * d_);",
     "Cast(out, picture, RoundMode::CAST_RINT, count_ * d_);\n        Exp(out, out, 16);",
     "vector arithmetic takes half and float", "bfloat16_t"),
    ("the wrong way of rounding", FORWARD,
     "Cast(out, strip, RoundMode::CAST_RINT", "Cast(out, strip, RoundMode::CAST_NONE",
     "Cast: CAST_RINT to 16 bits"),
    ("every key is the first", MULTIPLIER, "load.srcStride = 1;", "load.srcStride = 0;", "WRONG"),
    ("earlier tiles keep their weight", FORWARD, "by_row<By::MUL>(picture, blocks, count_, d_);", "", "WRONG"),
    ("what is hidden counts", FORWARD,
     "visible.hide_others(strip, 0.0f, rows);", "visible.hide_others(strip, 1.0f, rows);",
     "WRONG"),
    ("a tile that may not change is freed", BACKWARD, "free_lines(LocalTensor<float>* lines)",
     "free_lines(const LocalTensor<float>* lines)", "qualifiers"),
    ("more buffers wait than there are event ids", BACKWARD, "pipe.InitBuffer(factor_in_, 2,",
     "pipe.InitBuffer(factor_in_, 4,", "event ids of MTE1_MTE2 are held"),
    ("one buffer of keys too many", FORWARD, "pipe.InitBuffer(keys_in_, 2,", "pipe.InitBuffer(keys_in_, 3,",
     "event ids of MTE1_MTE2 are held"),
    ("TPipe's own event ids are taken", MULTIPLIER, "pipe.InitBuffer(left_, 2,", "pipe.InitBuffer(left_, 4,",
     "event ids of M_MTE1 are held"),
    ("a zero that bfloat16_t cannot be made of", CUBE, "0, half(0));", "0, T(0));", "use of deleted function",
     "bfloat16_t"),
    ("a chunk of more than UB holds", BACKWARD, "CHUNK = 4096", "CHUNK = 32768", "InitBuffer: .* of UB in use"),
    ("both tiles of rows lie in one place", BACKWARD, "load_tile(rows[i * t_.rows * d_],", "load_tile(rows[0],",
     "may still be|nothing has written"),
    ("the values' rows make the scores", BACKWARD, "rows[i * t_.rows * d_], t_.rows, tile", "rows[0], t_.rows, tile",
     "WRONG"),
    ("a sum is never enqueued", BACKWARD, "sum_[i].EnQue(sums[i]);", "", "DeQue: nothing is enqueued"),
    ("probabilities are never sent", BACKWARD, "            send(factor_[1][slot(j)], p, n16);\n", "",
     "nothing has written"),
    ("the gradient of scores is not scaled", BACKWARD, "Muls(ds, ds, t_.scale, size);", "PipeBarrier<PIPE_V>();",
     "WRONG"),
    ("both vector cores take the first rows", FORWARD, "slot(j) + (own_ + first) * seen_",
     "slot(j) + first * seen_", "WRONG|may still be|nothing has written"),
    ("the greatest so far is forgotten", FORWARD, "Adds(maximum, fresh, 0.0f, lines);", "", "WRONG"),
    ("the sum keeps its old weight", FORWARD, "Mul(sum, sum, factor, static_cast<int32_t>(up(rows, BLOCK)));", "",
     "WRONG"),
    ("all cores share one workspace", FORWARD, "core * forward_plan", "(core & 0) * forward_plan",
     "may still be|WRONG"),
    ("rows of a product are packed", CUBE, "store.dstStride = pitch;", "store.dstStride = columns;",
     "WRONG|nothing has written|second time|may still be"),
    ("dq is cast before all have added to it", BACKWARD,
     "Pass::ALL>(a, tiling);\n    SyncAll<false>();", "Pass::ALL>(a, tiling);", "may still be adding"),
    ("dq is not zero before it is added to", BACKWARD, ".clear();", ";", "nothing has written|unused"),
    ("dq is written and not added to", BACKWARD, "SetAtomicAdd<float>();", "", "may still be|WRONG"),
    ("the addition never ends", BACKWARD, "        SetAtomicNone();\n", "",
     "nothing has written|reads the output|WRONG"),
    ("a gradient of scores is not transposed", MULTIPLIER, "load.srcStride = 1;\n        load.ifTranspose = true;",
     "load.srcStride = 1;", "WRONG"),
    ("delta is left out", BACKWARD, "minus(ds, lines[1], 1, n, n16);", "PipeBarrier<PIPE_V>();", "WRONG"),
    # The 910A's.
    ("the next scores overwrite those that the vector unit takes", COUPLED_FORWARD,
     "score_out_.FreeTensor(product);", "", "AllocTensor: all 1 buffers"),
    ("probabilities are read before they lie in L1", CORE, "SetFlag<HardEvent::MTE3_MTE1>(written_);\n"
     "        WaitFlag<HardEvent::MTE3_MTE1>(written_);", "", "may still be writing"),
    ("they are overwritten while they are read", CORE, "SetFlag<HardEvent::MTE1_MTE3>(read_);\n    }\n\n    // From UB",
     "}\n\n    // From UB", "WaitFlag: event"),
    ("an event id is not given back", CORE,
     "pipe.ReleaseEventID<HardEvent::MTE3_MTE1>(written_);", "", "not given back"),
    ("an event id that nobody gave", CORE, "written_ = pipe.AllocEventID<HardEvent::MTE3_MTE1>();", "written_ = 0;",
     "which AllocEventID has not given"),
    ("five buffers of four event ids", COUPLED_BACKWARD, "pipe.InitBuffer(keys_in_, 2,", "pipe.InitBuffer(keys_in_, 3,",
     "event ids of MTE1_MTE2 are held"),
    ("padding is left as it was", CORE, "for (uint32_t at = 0; at < whole; at += rows) {",
     "for (uint32_t at = 0; at < rows; at += rows) {", "which nothing has written"),
    ("padding counts", COUPLED_FORWARD, "counted.hide_others(scores, LOWEST);",
     "counted.hide_others(scores, 0.0f);", "WRONG"),
    ("the wrong lanes are scaled", CORE, "lane += BLOCK) {", "lane += FRACTAL) {", "WRONG"),
    ("folding loses a row", CORE, "const uint32_t kept = (left + 1) / 2;", "const uint32_t kept = left / 2;", "WRONG"),
    ("a picture is not turned", COUPLED_FORWARD,
     "Transpose(out[c * line + b * FRACTAL * FRACTAL], narrow[(b * t_.width + c) * FRACTAL]);",
     "Muls(out[c * line + b * FRACTAL * FRACTAL], narrow[(b * t_.width + c) * FRACTAL], half(1), 256);", "WRONG"),
    ("a rounding that a 910A lacks", COUPLED_BACKWARD,
     "Cast(out, sum, RoundMode::CAST_NONE", "Cast(out, sum, RoundMode::CAST_RINT",
     "on a 910A CAST_NONE"),
    ("an instruction that a 910A lacks", COUPLED_FORWARD,
     "Max(fresh, fresh, maximum, line);", "Mins(fresh, fresh, 0.0f, line);",
     "was not declared|no matching"),
    ("a product that is not aligned in L0C", COUPLED_FORWARD, "multiplier_.of_transposed(result, values,",
     "multiplier_.of_transposed(result[16], values,", "not a multiple of 1024"),
    ("values' gradients take the scores' factor", COUPLED_BACKWARD,
     "operand(i, i, n16 * m16)", "operand(i, 1, n16 * m16)", "WRONG"),
    ("dq's products are not summed", COUPLED_BACKWARD, "m16, d, n16, starts);", "m16, d, n16, true);", "WRONG"),
    ("delta is taken for the log-sum-exp", COUPLED_BACKWARD, "by_lane<On::SUB>(ds, lines[t_.rows], lanes, n16);",
     "by_lane<On::SUB>(ds, lines, lanes, n16);", "WRONG"),
]  # fmt: skip


def run(folder, name, dtype):
    """The kernel that a bug sits in, on lengths with tails, three spans a row and, on a 910B, a width with a tail."""
    rng = np.random.default_rng(0)
    heads, coupled = 2, name in (CORE, COUPLED_FORWARD, COUPLED_BACKWARD)
    width, queries = (48, 144) if coupled else (40, 150)
    q, k, v, do = (rounded(rng.standard_normal((1, n, heads * width)), dtype) for n in (queries, 250, 250, queries))
    tiling = settings(q, k, heads, (32, 48, 2, 8), False, width**-0.5, half=True)
    right = reference(q, k, v, tiling, do)
    delta = (split(rounded(right[0], dtype), heads) * split(do, heads)).sum(-1).astype(np.float32)
    inputs = [q, k, v, do, right[1].astype(np.float32), delta]
    got, wanted = [], []

    def made(source):
        return build(source, folder, dtype, folder, "-O0", "910a" if coupled else "910b")

    if coupled or name != BACKWARD:
        got, wanted = [*forward(made("forward.cpp"), q, k, v, tiling)[:1]], [right[0]]
    if name in (BACKWARD, CORE, COUPLED_BACKWARD):
        got, wanted = [*got, *backward(made("backward.cpp"), inputs, tiling)], [*wanted, *right[2:]]
    for one, other in zip(got, wanted):
        if not np.linalg.norm(widened(one) - other) <= 5e-3 * np.linalg.norm(other):
            raise KernelError("WRONG numbers")


@pytest.mark.parametrize("bug", BUGS, ids=[bug[0].replace(" ", "-") for bug in BUGS])
def test_a_bug_is_caught(tmp_path, bug):
    _, name, text, instead, said, *dtype = bug
    for source in KERNELS.iterdir():
        shutil.copy(source, tmp_path)
    source = (tmp_path / name).read_text()
    assert source.count(text) >= 1, "the kernel has changed; change the bug"
    (tmp_path / name).write_text(source.replace(text, instead))
    kernel = BACKWARD if bug[0].startswith(("the target", "a gradient of")) else name
    with pytest.raises(KernelError) as caught:
        run(tmp_path, kernel, dtype[0] if dtype else "half")
    assert re.search(said, str(caught.value)), str(caught.value)[-2000:]


@pytest.mark.parametrize("kernel", [FORWARD, BACKWARD, CORE])
def test_without_a_bug_the_same_runs_pass(tmp_path, kernel):
    for source in KERNELS.iterdir():
        shutil.copy(source, tmp_path)
    run(tmp_path, kernel, "half")
