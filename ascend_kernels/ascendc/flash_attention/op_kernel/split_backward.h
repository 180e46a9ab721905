// The gradients of softmax(scale · q kᵀ) v, tile by tile (arXiv 2307.08691), for Ascend 910B. Never run on an NPU; see
// README.md.
//
//   s = rows · columnsᵀ    p = exp(scale · s − lse)    ds = scale · p ∘ (dp − delta)
//
// One pass, or two where equal bits are asked for each time. Each has a block of rows and goes through the columns:
//   all:          rows are keys, columns queries: dp = v doᵀ,  dv = Σ p · do,  dk = Σ ds · q,  dq += dsᵀ · k
//   over keys:    the same without dq
//   over queries: rows are queries, columns keys: dp = do vᵀ,  dq = Σ ds · k
// dk and dv, and over queries dq, grow in L0C in one core and in one order. In one pass dq is added up in float in
// global memory by all cores that have keys, in whatever order they come, and cast at the end. Two passes do two
// products of seven twice.
//
// q, o, do: (N, S, H·D); k, v: (N, T, H·D), half or bfloat16_t; lse, delta = Σ do ∘ o over D: (N, H, S) float.
#ifndef MINDPANGU_SPLIT_BACKWARD_H
#define MINDPANGU_SPLIT_BACKWARD_H

#include "attention_cube.h"
#include "attention_tiling.h"
#include "attention_vector.h"
#include "kernel_operator.h"

namespace attention {

enum class Pass { ALL, KEYS, QUERIES };

// T: what q, k, v and the gradients are in; S: what scores and their gradients leave the cube in.
template <typename T, typename S, Pass PASS>
class Backward {
    static constexpr bool OVER_KEYS = PASS != Pass::QUERIES, NARROW = IsSameType<S, half>::value;
    static constexpr uint32_t SUMS = OVER_KEYS ? 2 : 1;  // dk and dv, or dq; and of the tiles that go with them

public:
    __aicore__ inline Backward(GM_ADDR q, GM_ADDR k, GM_ADDR v, GM_ADDR grad, GM_ADDR lse, GM_ADDR delta, GM_ADDR dq,
                               GM_ADDR dk, GM_ADDR dv, GM_ADDR workspace, const AttentionTiling& tiling, TPipe& pipe)
        : t_(tiling), d_(up(tiling.width, FRACTAL)), pitch_(tiling.heads * tiling.width),
          height_(OVER_KEYS ? tiling.keys : tiling.queries), length_(OVER_KEYS ? tiling.queries : tiling.keys),
          blocks_((height_ + tiling.rows - 1) / tiling.rows) {
        const uint32_t core = GetBlockIdx() / GetSubBlockNum();
        const uint64_t rows = uint64_t(t_.batch) * height_ * pitch_, columns = uint64_t(t_.batch) * length_ * pitch_;
        const uint64_t lines = uint64_t(t_.batch) * t_.heads * t_.queries;
        // What meets in the scores, and what in their gradients.
        row_[0].SetGlobalBuffer(reinterpret_cast<__gm__ T*>(OVER_KEYS ? k : q), rows);
        row_[1].SetGlobalBuffer(reinterpret_cast<__gm__ T*>(OVER_KEYS ? v : grad), rows);
        column_[0].SetGlobalBuffer(reinterpret_cast<__gm__ T*>(OVER_KEYS ? q : k), columns);
        column_[1].SetGlobalBuffer(reinterpret_cast<__gm__ T*>(OVER_KEYS ? grad : v), columns);
        result_[0].SetGlobalBuffer(reinterpret_cast<__gm__ T*>(OVER_KEYS ? dk : dq), rows);
        if constexpr (OVER_KEYS) {
            result_[1].SetGlobalBuffer(reinterpret_cast<__gm__ T*>(dv), rows);
        }
        lse_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(lse), lines);
        delta_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(delta), lines);
        const uint32_t tile = t_.rows * t_.columns;
        // Both passes share the room of the larger one.
        const uint64_t room = backward_plan(t_.width, t_.rows, t_.columns, 2, sizeof(S), PASS == Pass::ALL).workspace;
        GM_ADDR own = workspace + core * room;
        if constexpr (PASS == Pass::ALL) {
            added_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(workspace + GetBlockNum() * room), columns);
        }
        for (uint32_t i = 0; i < 2; ++i) {
            score_[i].SetGlobalBuffer(reinterpret_cast<__gm__ S*>(own), SLOTS * tile);
            own += SLOTS * tile * sizeof(S);
        }
        for (uint32_t i = 0; i < SUMS; ++i) {
            factor_[i].SetGlobalBuffer(reinterpret_cast<__gm__ T*>(own), SLOTS * tile);
            own += SLOTS * tile * sizeof(T);
        }
        const uint32_t wide = larger(d_, t_.columns);
        if ASCEND_IS_AIC {
            for (uint32_t i = 0; i < 2; ++i) {
                pipe.InitBuffer(column_in_[i], 2, t_.columns * d_ * sizeof(T));
            }
            for (uint32_t i = 0; i < SUMS; ++i) {
                pipe.InitBuffer(sum_[i], 1, t_.rows * d_ * sizeof(float));
            }
            // Seven buffers of L1 in all: each holds an event id of MTE1_MTE2 while it is free, and there are eight.
            pipe.InitBuffer(row_in_, 1, 2 * t_.rows * d_ * sizeof(T));
            pipe.InitBuffer(factor_in_, 2, tile * sizeof(T));
            const bool adds = PASS == Pass::ALL;
            pipe.InitBuffer(score_out_, 2, t_.columns * (adds ? larger(t_.rows, d_) : t_.rows) * sizeof(float));
            multiplier_.init(pipe, t_.rows * wide * sizeof(T),
                             (adds ? larger(t_.rows, t_.columns) : t_.columns) * d_ * sizeof(T));
        }
        if ASCEND_IS_AIV {
            const uint32_t half = first_half(t_.rows), line = up(larger(half, t_.columns), BLOCK) * sizeof(float);
            for (uint32_t i = 0; i < 2; ++i) {
                pipe.InitBuffer(tile_in_[i], 2, half * t_.columns * sizeof(S));
                if constexpr (NARROW) {
                    pipe.InitBuffer(tile_[i], half * t_.columns * sizeof(float));
                }
                pipe.InitBuffer(line_in_[i], 2, line);
                pipe.InitBuffer(broadcast_[i], BLOCK * up(half, BLOCK) * sizeof(float));
            }
            pipe.InitBuffer(tile_out_, 2, half * t_.columns * sizeof(T));
        }
    }

    __aicore__ inline void process() {
        const uint32_t core = GetBlockIdx() / GetSubBlockNum(), tasks = t_.batch * t_.heads * blocks_;
        for (uint32_t task = core; task < tasks; task += GetBlockNum()) {
            const uint32_t head = task / blocks_ % t_.heads, picture = task / blocks_ / t_.heads;
            first_ = task % blocks_ * t_.rows;
            rows_ = smaller(t_.rows, height_ - first_);
            at_row_ = (uint64_t(picture) * height_ + first_) * pitch_ + head * t_.width;
            at_column_ = uint64_t(picture) * length_ * pitch_ + head * t_.width;
            at_line_ = (uint64_t(picture) * t_.heads + head) * t_.queries;
            const uint32_t tiles = (length_ + t_.columns - 1) / t_.columns;
            // With a causal mask a key is seen by queries from its own place on, a query sees keys up to its own.
            begin_ = t_.causal && OVER_KEYS ? first_ / t_.columns : 0;
            end_ = t_.causal && !OVER_KEYS ? smaller(tiles, (first_ + rows_ + t_.columns - 1) / t_.columns) : tiles;
            if ASCEND_IS_AIC {
                multiply();
            }
            if ASCEND_IS_AIV {
                differentiate();
            }
        }
    }

private:
    __aicore__ inline uint32_t columns(uint32_t j) const {
        return smaller(t_.columns, length_ - j * t_.columns);
    }
    __aicore__ inline uint32_t slot(uint32_t j) const { return j % SLOTS * t_.rows * t_.columns; }

    // ---- cube ----

    __aicore__ inline void multiply() {
        LocalTensor<float> sums[SUMS];
        LocalTensor<T> rows = row_in_.template AllocTensor<T>();
        for (uint32_t i = 0; i < 2; ++i) {
            load_tile(rows[i * t_.rows * d_], row_[i][at_row_], rows_, t_.width, pitch_, t_.rows);
        }
        row_in_.EnQue(rows);
        rows = row_in_.template DeQue<T>();
        for (uint32_t i = 0; i < SUMS; ++i) {
            sums[i] = sum_[i].template AllocTensor<float>();
        }
        make_scores(rows, begin_);
        for (uint32_t j = begin_; j < end_; ++j) {
            if (j + 1 < end_) {
                make_scores(rows, j + 1);
            }
            add_products(rows, sums, j);
        }
        row_in_.FreeTensor(rows);
        for (uint32_t i = 0; i < SUMS; ++i) {
            sum_[i].EnQue(sums[i]);
            sums[i] = sum_[i].template DeQue<float>();
            store_product(result_[i][at_row_], sums[i], rows_, t_.width, pitch_, up(rows_, FRACTAL));
            sum_[i].FreeTensor(sums[i]);
        }
    }

    __aicore__ inline void make_scores(const LocalTensor<T>& rows, uint32_t j) {
        const uint32_t m16 = up(rows_, FRACTAL), n16 = up(columns(j), FRACTAL);
        for (uint32_t i = 0; i < 2; ++i) {
            LocalTensor<T>& tile = tiles_[j % SLOTS][i];
            tile = column_in_[i].template AllocTensor<T>();
            load_tile(tile, column_[i][at_column_ + uint64_t(j) * t_.columns * pitch_], columns(j), t_.width, pitch_,
                      t_.columns);
            column_in_[i].EnQue(tile);
            tile = column_in_[i].template DeQue<T>();
            LocalTensor<float> score = score_out_.template AllocTensor<float>();
            multiplier_.by_transposed(score, rows[i * t_.rows * d_], t_.rows, tile, t_.columns, m16, n16, d_);
            score_out_.EnQue(score);
            score = score_out_.template DeQue<float>();
            store_product(score_[i][slot(j)], score, rows_, n16, t_.columns, m16);
            score_out_.FreeTensor(score);
        }
        CrossCoreSetFlag<PAIRED, PIPE_FIX>(SCORES);
    }

    __aicore__ inline void add_products(const LocalTensor<T>& rows, const LocalTensor<float>* sums, uint32_t j) {
        const uint32_t m16 = up(rows_, FRACTAL), n16 = up(columns(j), FRACTAL);
        CrossCoreWaitFlag(PROBABILITIES);
        // ds meets what made the scores, p what made their gradients.
        for (uint32_t i = 0; i < SUMS; ++i) {
            LocalTensor<T> factor = factor_in_.template AllocTensor<T>();
            load_tile(factor, factor_[i][slot(j)], rows_, n16, t_.columns, t_.rows);
            factor_in_.EnQue(factor);
            factor = factor_in_.template DeQue<T>();
            multiplier_.by(sums[i], factor, t_.rows, tiles_[j % SLOTS][i], t_.columns, m16, d_, n16, j == begin_);
            if (PASS == Pass::ALL && i == 0) {
                add_to_queries(factor, rows, j);
            }
            factor_in_.FreeTensor(factor);
        }
        for (uint32_t i = 0; i < 2; ++i) {
            column_in_[i].FreeTensor(tiles_[j % SLOTS][i]);
        }
    }

    // dq += dsᵀ · k, whose tile lies in L1.
    __aicore__ inline void add_to_queries(const LocalTensor<T>& ds, const LocalTensor<T>& keys, uint32_t j) {
        const uint32_t m16 = up(columns(j), FRACTAL), k16 = up(rows_, FRACTAL);
        LocalTensor<float> product = score_out_.template AllocTensor<float>();
        multiplier_.of_transposed(product, ds, t_.rows, keys, t_.rows, m16, d_, k16, true);
        score_out_.EnQue(product);
        product = score_out_.template DeQue<float>();
        SetAtomicAdd<float>();
        store_product(added_[at_column_ + uint64_t(j) * t_.columns * pitch_], product, columns(j), t_.width, pitch_, m16);
        SetAtomicNone();
        score_out_.FreeTensor(product);
    }

    // ---- vector ----

    __aicore__ inline void differentiate() {
        const uint32_t split = first_half(rows_);
        own_ = GetSubBlockIdx() == 0 ? 0 : split;
        count_ = GetSubBlockIdx() == 0 ? split : rows_ - split;
        LocalTensor<float> lines[2];
        if (!OVER_KEYS && count_ > 0) {
            load_lines(lines, first_ + own_, count_);
            for (uint32_t i = 0; i < 2; ++i) {
                broadcast(broadcast_[i].template Get<float>(), lines[i], count_);
            }
            PipeBarrier<PIPE_V>();
        }
        for (uint32_t j = begin_; j < end_; ++j) {
            CrossCoreWaitFlag(SCORES);
            if (count_ > 0) {
                if constexpr (OVER_KEYS) {
                    load_lines(lines, j * t_.columns, columns(j));
                }
                make_factors(lines, j);
                if constexpr (OVER_KEYS) {
                    free_lines(lines);
                }
            }
            CrossCoreSetFlag<PAIRED, PIPE_MTE3>(PROBABILITIES);
        }
        if (!OVER_KEYS && count_ > 0) {
            free_lines(lines);
        }
    }

    __aicore__ inline void load_lines(LocalTensor<float>* lines, uint32_t query, uint32_t count) {
        for (uint32_t i = 0; i < 2; ++i) {
            lines[i] = line_in_[i].template AllocTensor<float>();
            load_rows(lines[i], (i == 0 ? lse_ : delta_)[at_line_ + query], 1, count, count);
            line_in_[i].EnQue(lines[i]);
            lines[i] = line_in_[i].template DeQue<float>();
        }
    }

    __aicore__ inline void free_lines(LocalTensor<float>* lines) {
        for (uint32_t i = 0; i < 2; ++i) {
            line_in_[i].FreeTensor(lines[i]);
        }
    }

    // tile −= lse or delta: a number for each row, or, over keys, for each real column.
    __aicore__ inline void minus(const LocalTensor<float>& tile, const LocalTensor<float>& line, uint32_t i, uint32_t n,
                                 uint32_t n16) {
        if constexpr (OVER_KEYS) {
            minus_columns(tile, line, count_, n, n16);
        } else {
            by_row<By::SUB>(tile, broadcast_[i].template Get<float>(), count_, n16);
        }
        PipeBarrier<PIPE_V>();
    }

    __aicore__ inline void make_factors(const LocalTensor<float>* lines, uint32_t j) {
        const uint32_t n = columns(j), n16 = up(n, FRACTAL);
        const int32_t size = static_cast<int32_t>(count_ * n16);
        LocalTensor<S> in[2];
        LocalTensor<float> tiles[2];
        if constexpr (NARROW) {
            PipeBarrier<PIPE_V>();  // the last tile has been cast
        }
        for (uint32_t i = 0; i < 2; ++i) {
            in[i] = tile_in_[i].template AllocTensor<S>();
            load_rows(in[i], score_[i][slot(j) + own_ * t_.columns], count_, n16, t_.columns);
            tile_in_[i].EnQue(in[i]);
            in[i] = tile_in_[i].template DeQue<S>();
            if constexpr (NARROW) {
                tiles[i] = tile_[i].template Get<float>();
                Cast(tiles[i], in[i], RoundMode::CAST_NONE, count_ * n16);
                tile_in_[i].FreeTensor(in[i]);
            } else {
                tiles[i] = in[i];
            }
        }
        if constexpr (NARROW) {
            PipeBarrier<PIPE_V>();
        }
        const Visible visible{n, n16, t_.causal != 0, OVER_KEYS, static_cast<int32_t>(first_ + own_),
                              static_cast<int32_t>(j * t_.columns)};
        const LocalTensor<float>&p = tiles[0], &ds = tiles[1];
        Muls(p, p, t_.scale, size);
        PipeBarrier<PIPE_V>();
        minus(p, lines[0], 0, n, n16);
        visible.hide_others(p, LOWEST, count_);
        minus(ds, lines[1], 1, n, n16);
        Exp(p, p, size);
        PipeBarrier<PIPE_V>();
        if constexpr (OVER_KEYS) {
            send(factor_[1][slot(j)], p, n16);
        }
        Mul(ds, ds, p, size);
        PipeBarrier<PIPE_V>();
        Muls(ds, ds, t_.scale, size);
        PipeBarrier<PIPE_V>();
        send(factor_[0][slot(j)], ds, n16);
        for (uint32_t i = 0; i < 2; ++i) {
            if constexpr (!NARROW) {
                tile_in_[i].FreeTensor(in[i]);
            }
        }
    }

    __aicore__ inline void send(const GlobalTensor<T>& target, const LocalTensor<float>& tile, uint32_t n16) {
        LocalTensor<T> out = tile_out_.template AllocTensor<T>();
        Cast(out, tile, RoundMode::CAST_RINT, count_ * n16);
        tile_out_.EnQue(out);
        out = tile_out_.template DeQue<T>();
        store_rows(target[own_ * t_.columns], out, count_, n16, n16, t_.columns);
        tile_out_.FreeTensor(out);
    }

    const AttentionTiling t_;
    const uint32_t d_, pitch_;                 // width in whole fractals; between rows of q, k, v, do
    const uint32_t height_, length_, blocks_;  // rows and columns of all scores, blocks of rows
    uint32_t first_, rows_, begin_, end_;      // of this task: the first row, rows, tiles of columns
    uint64_t at_row_, at_column_, at_line_;
    uint32_t own_, count_;                     // rows of this vector core
    GlobalTensor<T> row_[2], column_[2], result_[SUMS], factor_[SUMS];
    GlobalTensor<S> score_[2];
    GlobalTensor<float> lse_, delta_, added_;

    TQue<TPosition::A1, 1> row_in_;    // both tiles of rows
    TQue<TPosition::A1, 2> factor_in_;  // p and ds in turn
    TQue<TPosition::B1, 2> column_in_[2];
    TQue<TPosition::CO1, 1> sum_[SUMS];
    TQue<TPosition::CO1, 2> score_out_;
    LocalTensor<T> tiles_[SLOTS][2];   // of columns, from their scores to their products
    Multiplier<T> multiplier_;

    TQue<TPosition::VECIN, 2> tile_in_[2], line_in_[2];
    TQue<TPosition::VECOUT, 2> tile_out_;
    TBuf<TPosition::VECCALC> tile_[2], broadcast_[2];
};

// Sums in float in global memory, which all vector cores share out: zero before they are added to, cast to T after.
template <typename T>
class Added {
    static constexpr uint32_t CHUNK = 4096;

public:
    __aicore__ inline Added(GM_ADDR sums, GM_ADDR result, uint64_t count, TPipe& pipe) : count_(count) {
        sums_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(sums), count);
        result_.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(result), count);
        pipe.InitBuffer(in_, 2, CHUNK * sizeof(float));
        pipe.InitBuffer(out_, 2, CHUNK * sizeof(T));
        pipe.InitBuffer(zero_, 1, CHUNK * sizeof(float));
    }

    __aicore__ inline void clear() {
        LocalTensor<float> zero = zero_.template AllocTensor<float>();
        Duplicate(zero, 0.0f, static_cast<int32_t>(CHUNK));
        zero_.EnQue(zero);
        zero = zero_.template DeQue<float>();
        for (uint64_t at = uint64_t(GetBlockIdx()) * CHUNK; at < count_; at += step()) {
            store_rows(sums_[at], zero, 1, left(at), up(left(at), BLOCK), left(at));
        }
        zero_.FreeTensor(zero);
    }

    __aicore__ inline void finish() {
        for (uint64_t at = uint64_t(GetBlockIdx()) * CHUNK; at < count_; at += step()) {
            LocalTensor<float> in = in_.template AllocTensor<float>();
            load_rows(in, sums_[at], 1, left(at), left(at));
            in_.EnQue(in);
            in = in_.template DeQue<float>();
            LocalTensor<T> out = out_.template AllocTensor<T>();
            Cast(out, in, RoundMode::CAST_RINT, left(at));
            in_.FreeTensor(in);
            out_.EnQue(out);
            out = out_.template DeQue<T>();
            store_rows(result_[at], out, 1, left(at), up(left(at), FRACTAL), left(at));
            out_.FreeTensor(out);
        }
    }

private:
    __aicore__ inline uint64_t step() const { return uint64_t(GetBlockNum()) * GetSubBlockNum() * CHUNK; }
    __aicore__ inline uint32_t left(uint64_t at) const {
        return count_ - at < CHUNK ? static_cast<uint32_t>(count_ - at) : CHUNK;
    }

    const uint64_t count_;
    GlobalTensor<float> sums_;
    GlobalTensor<T> result_;
    TQue<TPosition::VECIN, 2> in_;
    TQue<TPosition::VECOUT, 2> out_;
    TQue<TPosition::VECOUT, 1> zero_;
};

// What the kernel is given.
struct Arguments {
    // One by one: GM_ADDR is a macro that ends in a star.
    GM_ADDR q;
    GM_ADDR k;
    GM_ADDR v;
    GM_ADDR grad;
    GM_ADDR lse;
    GM_ADDR delta;
    GM_ADDR dq;
    GM_ADDR dk;
    GM_ADDR dv;
    GM_ADDR workspace;
};

template <typename T, typename S, Pass PASS>
__aicore__ inline void run_pass(const Arguments& a, const AttentionTiling& tiling) {
    TPipe pipe;
    Backward<T, S, PASS>(a.q, a.k, a.v, a.grad, a.lse, a.delta, a.dq, a.dk, a.dv, a.workspace, tiling, pipe).process();
    pipe.Destroy();
}

template <typename T, typename S>
__aicore__ inline void run(const Arguments& a, const AttentionTiling& tiling) {
    if (tiling.deterministic) {
        run_pass<T, S, Pass::KEYS>(a, tiling);
        PipeBarrier<PIPE_ALL>();
        run_pass<T, S, Pass::QUERIES>(a, tiling);
        return;
    }
    const uint64_t room = backward_plan(tiling.width, tiling.rows, tiling.columns, 2, sizeof(S), true).workspace;
    GM_ADDR sums = a.workspace + GetBlockNum() * room;
    const uint64_t count = uint64_t(tiling.batch) * tiling.queries * tiling.heads * tiling.width;
    if ASCEND_IS_AIV {
        TPipe pipe;
        Added<T>(sums, a.dq, count, pipe).clear();
        pipe.Destroy();
    }
    SyncAll<false>();
    run_pass<T, S, Pass::ALL>(a, tiling);
    SyncAll<false>();
    if ASCEND_IS_AIV {
        TPipe pipe;
        Added<T>(sums, a.dq, count, pipe).finish();
        pipe.Destroy();
    }
}

}  // namespace attention

#endif
