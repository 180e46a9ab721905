// The gradients of softmax(scale · q kᵀ) v (arXiv 2307.08691), for Ascend 910A, in two passes, so that nothing is added
// up between cores and the bits are the same each time. Never run on an NPU; see README.md.
//
//   sᵀ = k qᵀ    pᵀ = exp(scale · sᵀ − lse)    dsᵀ = scale · pᵀ ∘ (v doᵀ − delta)
//   over keys:    dv = Σ pᵀ · do,  dk = Σ dsᵀ · q, a block of keys in a core
//   over queries: dq = Σ (dsᵀ)ᵀ · k, a block of queries in a core
//
// q, do: (N, S, H·D); k, v: (N, T, H·D), half, S and D multiples of 16; lse, delta = Σ do ∘ o over D: (N, H, S) float.
#ifndef MINDPANGU_COUPLED_BACKWARD_H
#define MINDPANGU_COUPLED_BACKWARD_H

#include "coupled_core.h"

namespace attention {

template <bool OVER_KEYS>
class CoupledBackward {
    static constexpr uint32_t SUMS = OVER_KEYS ? 2 : 1;  // dv and dk, or dq
    enum { FIRST, SECOND };  // of two tiles: k and v, or q and do

public:
    __aicore__ inline CoupledBackward(GM_ADDR q, GM_ADDR k, GM_ADDR v, GM_ADDR grad, GM_ADDR lse, GM_ADDR delta,
                                      GM_ADDR dq, GM_ADDR dk, GM_ADDR dv, const AttentionTiling& tiling, TPipe& pipe)
        : t_(tiling), pipe_(pipe), pitch_(tiling.heads * tiling.width),
          length_(OVER_KEYS ? tiling.keys : tiling.queries), step_(OVER_KEYS ? tiling.columns : tiling.rows) {
        const uint64_t queries = uint64_t(t_.batch) * t_.queries * pitch_, keys = uint64_t(t_.batch) * t_.keys * pitch_;
        const uint64_t lines = uint64_t(t_.batch) * t_.heads * t_.queries;
        of_queries_[FIRST].SetGlobalBuffer(reinterpret_cast<__gm__ half*>(q), queries);
        of_queries_[SECOND].SetGlobalBuffer(reinterpret_cast<__gm__ half*>(grad), queries);
        of_keys_[FIRST].SetGlobalBuffer(reinterpret_cast<__gm__ half*>(k), keys);
        of_keys_[SECOND].SetGlobalBuffer(reinterpret_cast<__gm__ half*>(v), keys);
        of_lines_[FIRST].SetGlobalBuffer(reinterpret_cast<__gm__ float*>(lse), lines);
        of_lines_[SECOND].SetGlobalBuffer(reinterpret_cast<__gm__ float*>(delta), lines);
        if constexpr (OVER_KEYS) {
            result_[0].SetGlobalBuffer(reinterpret_cast<__gm__ half*>(dv), keys);
            result_[1].SetGlobalBuffer(reinterpret_cast<__gm__ half*>(dk), keys);
        } else {
            result_[0].SetGlobalBuffer(reinterpret_cast<__gm__ half*>(dq), queries);
        }
        const uint32_t d = t_.width, scores = t_.rows * t_.columns, longer = larger(t_.rows, t_.columns);
        pipe.InitBuffer(queries_in_, 2, t_.rows * d * sizeof(half));
        pipe.InitBuffer(keys_in_, 2, t_.columns * d * sizeof(half));
        pipe.InitBuffer(line_in_, 1, 2 * t_.rows * sizeof(float));
        for (uint32_t i = 0; i < SUMS; ++i) {
            operand_[i].init(pipe, scores * sizeof(half));
            pipe.InitBuffer(sum_out_[i], 1, step_ * d * sizeof(float));
        }
        multiplier_.init(pipe, t_.columns * larger(d, t_.rows) * sizeof(half), longer * d * sizeof(half));
        for (uint32_t i = 0; i < 2; ++i) {
            pipe.InitBuffer(score_out_[i], 1, scores * sizeof(float));
            pipe.InitBuffer(tile_[i], scores * sizeof(float));
        }
        pipe.InitBuffer(sum_, step_ * d * sizeof(float));
        pipe.InitBuffer(out_, 2, larger(scores, step_ * d) * sizeof(half));
    }

    __aicore__ inline void process() {
        const uint32_t blocks = (length_ + step_ - 1) / step_, cores = GetBlockNum();
        for (uint32_t task = GetBlockIdx(); task < t_.batch * t_.heads * blocks; task += cores) {
            const uint32_t head = task / blocks % t_.heads, picture = task / blocks / t_.heads;
            first_ = task % blocks * step_;
            count_ = smaller(step_, length_ - first_);
            query_ = uint64_t(picture) * t_.queries * pitch_ + head * t_.width;
            key_ = uint64_t(picture) * t_.keys * pitch_ + head * t_.width;
            line_ = (uint64_t(picture) * t_.heads + head) * t_.queries;
            go_through();
        }
        for (uint32_t i = SUMS; i > 0; --i) {
            operand_[i - 1].finish(pipe_);
        }
    }

private:
    // The block's tiles stay; those of the other side go by. With a causal mask some of them see nothing of it.
    __aicore__ inline void go_through() {
        const uint32_t other = OVER_KEYS ? t_.rows : t_.columns;
        uint32_t begin = 0, end = OVER_KEYS ? t_.queries : t_.keys;
        if (t_.causal && OVER_KEYS) {
            begin = first_ / other * other;
        } else if (t_.causal) {
            end = smaller(end, first_ + count_);
        }
        LocalTensor<half> own[2], passing[2];
        LocalTensor<float> sums[SUMS];
        load_both(own, OVER_KEYS, first_, count_);
        for (uint32_t i = 0; i < SUMS; ++i) {
            sums[i] = sum_out_[i].template AllocTensor<float>();
        }
        for (uint32_t first = begin; first < end; first += other) {
            const uint32_t n = smaller(other, end - first);
            load_both(passing, !OVER_KEYS, first, n);
            const LocalTensor<half>*keys = OVER_KEYS ? own : passing, *queries = OVER_KEYS ? passing : own;
            make_scores(keys, queries, OVER_KEYS ? count_ : n, OVER_KEYS ? n : count_, OVER_KEYS ? first_ : first,
                        OVER_KEYS ? first : first_);
            add_products(sums, keys, queries, OVER_KEYS ? count_ : n, OVER_KEYS ? n : count_, first == begin);
            free_both(passing, !OVER_KEYS);
        }
        free_both(own, OVER_KEYS);
        for (uint32_t i = 0; i < SUMS; ++i) {
            sum_out_[i].EnQue(sums[i]);
            store(i);
        }
    }

    __aicore__ inline void load_both(LocalTensor<half>* tiles, bool keys, uint32_t first, uint32_t n) {
        for (uint32_t i = 0; i < 2; ++i) {
            if (keys) {
                tiles[i] = keys_in_.template AllocTensor<half>();
                load_coupled(tiles[i], of_keys_[i][key_ + uint64_t(first) * pitch_], n, t_.width, pitch_, t_.columns);
                keys_in_.EnQue(tiles[i]);
            } else {
                tiles[i] = queries_in_.template AllocTensor<half>();
                load_coupled(tiles[i], of_queries_[i][query_ + uint64_t(first) * pitch_], n, t_.width, pitch_, t_.rows);
                queries_in_.EnQue(tiles[i]);
            }
        }
        for (uint32_t i = 0; i < 2; ++i) {
            tiles[i] = keys ? keys_in_.template DeQue<half>() : queries_in_.template DeQue<half>();
        }
    }

    __aicore__ inline void free_both(LocalTensor<half>* tiles, bool keys) {
        for (uint32_t i = 0; i < 2; ++i) {
            if (keys) {
                keys_in_.FreeTensor(tiles[i]);
            } else {
                queries_in_.FreeTensor(tiles[i]);
            }
        }
    }

    // pᵀ and dsᵀ of n keys and m queries, whose first ones are key and query.
    __aicore__ inline void make_scores(const LocalTensor<half>* keys, const LocalTensor<half>* queries, uint32_t n,
                                       uint32_t m, uint32_t key, uint32_t query) {
        const uint32_t n16 = up(n, FRACTAL), lanes = (m + FRACTAL - 1) / FRACTAL;
        const uint32_t size = n16 * lanes * FRACTAL, line = lanes * FRACTAL;
        LocalTensor<float> lines = line_in_.template AllocTensor<float>();
        for (uint32_t i = 0; i < 2; ++i) {
            DataCopy(lines[i * t_.rows], of_lines_[i][line_ + query],
                     DataCopyParams(1, static_cast<uint16_t>(line / BLOCK), 0, 0));
        }
        line_in_.EnQue(lines);
        for (uint32_t i = 0; i < 2; ++i) {
            LocalTensor<float> product = score_out_[i].template AllocTensor<float>();
            multiplier_.by_transposed(product, keys[i], t_.columns, queries[i], t_.rows, n16, line, t_.width);
            score_out_[i].EnQue(product);
        }
        for (uint32_t i = 0; i < 2; ++i) {
            LocalTensor<float> product = score_out_[i].template DeQue<float>();
            take_product(tile_[i].template Get<float>(), product, size);
            score_out_[i].FreeTensor(product);
        }
        PipeBarrier<PIPE_V>();
        lines = line_in_.template DeQue<float>();
        LocalTensor<float> p = tile_[FIRST].template Get<float>(), ds = tile_[SECOND].template Get<float>();
        const Counted counted{n, n16, lanes, t_.causal != 0, static_cast<int32_t>(key), static_cast<int32_t>(query)};
        Muls(p, p, t_.scale, static_cast<int32_t>(size));
        PipeBarrier<PIPE_V>();
        by_lane<On::SUB>(p, lines, lanes, n16);
        counted.hide_others(p, LOWEST);  // before exp: what is hidden may be greater than any that counts
        Exp(p, p, static_cast<int32_t>(size));
        by_lane<On::SUB>(ds, lines[t_.rows], lanes, n16);
        line_in_.FreeTensor(lines);
        Mul(ds, ds, p, static_cast<int32_t>(size));
        PipeBarrier<PIPE_V>();
        Muls(ds, ds, t_.scale, static_cast<int32_t>(size));
        PipeBarrier<PIPE_V>();
    }

    __aicore__ inline LocalTensor<half> operand(uint32_t i, uint32_t tile, uint32_t size) {
        LocalTensor<half> out = out_.template AllocTensor<half>();
        Cast(out, tile_[tile].template Get<float>(), RoundMode::CAST_NONE, size);
        out_.EnQue(out);
        out = out_.template DeQue<half>();
        LocalTensor<half> found = operand_[i].put(out, size);
        out_.FreeTensor(out);
        return found;
    }

    __aicore__ inline void add_products(LocalTensor<float>* sums, const LocalTensor<half>* keys,
                                        const LocalTensor<half>* queries, uint32_t n, uint32_t m, bool starts) {
        const uint32_t n16 = up(n, FRACTAL), m16 = up(m, FRACTAL), d = t_.width;
        if constexpr (OVER_KEYS) {
            for (uint32_t i = 0; i < 2; ++i) {  // pᵀ · do, dsᵀ · q
                const LocalTensor<half> factor = operand(i, i, n16 * m16);
                multiplier_.by(sums[i], factor, n16, queries[1 - i], t_.rows, n16, d, m16, starts);
                operand_[i].read();
            }
        } else {
            const LocalTensor<half> factor = operand(0, SECOND, n16 * m16);
            multiplier_.of_transposed(sums[0], factor, n16, keys[FIRST], t_.columns, m16, d, n16, starts);
            operand_[0].read();
        }
        PipeBarrier<PIPE_V>();
    }

    __aicore__ inline void store(uint32_t i) {
        const uint32_t whole = up(count_, FRACTAL);
        LocalTensor<float> result = sum_out_[i].template DeQue<float>(), sum = sum_.template Get<float>();
        take_product(sum, result, whole * t_.width);
        sum_out_[i].FreeTensor(result);
        PipeBarrier<PIPE_V>();
        LocalTensor<half> out = out_.template AllocTensor<half>();
        Cast(out, sum, RoundMode::CAST_NONE, whole * t_.width);
        PipeBarrier<PIPE_V>();
        out_.EnQue(out);
        out = out_.template DeQue<half>();
        store_coupled(result_[i][(OVER_KEYS ? key_ : query_) + uint64_t(first_) * pitch_], out, count_, t_.width, pitch_,
                      whole);
        out_.FreeTensor(out);
    }

    const AttentionTiling t_;
    TPipe& pipe_;
    const uint32_t pitch_;          // between rows of q, k, v, do
    const uint32_t length_, step_;  // of the side whose blocks are shared out
    uint32_t first_, count_;        // of this task's block
    uint64_t query_, key_, line_;
    GlobalTensor<half> of_queries_[2], of_keys_[2], result_[SUMS];
    GlobalTensor<float> of_lines_[2];

    // A chip with four event ids a pair of pipes: these four buffers hold all of MTE1_MTE2, the multiplier's four all of
    // M_MTE1, and over keys two scores and two sums all of V_M.
    TQue<TPosition::A1, 2> queries_in_;
    TQue<TPosition::B1, 2> keys_in_;
    TQue<TPosition::VECIN, 1> line_in_;  // lse, then delta
    Operand operand_[SUMS];
    Multiplier<half> multiplier_;
    TQue<TPosition::CO1, 1> score_out_[2], sum_out_[SUMS];
    TQue<TPosition::VECOUT, 2> out_;
    TBuf<TPosition::VECCALC> tile_[2], sum_;
};

template <bool OVER_KEYS>
__aicore__ inline void coupled_pass(GM_ADDR q, GM_ADDR k, GM_ADDR v, GM_ADDR grad, GM_ADDR lse, GM_ADDR delta, GM_ADDR dq,
                                    GM_ADDR dk, GM_ADDR dv, const AttentionTiling& tiling) {
    TPipe pipe;
    CoupledBackward<OVER_KEYS>(q, k, v, grad, lse, delta, dq, dk, dv, tiling, pipe).process();
    pipe.Destroy();
}

__aicore__ inline void run_coupled(GM_ADDR q, GM_ADDR k, GM_ADDR v, GM_ADDR grad, GM_ADDR lse, GM_ADDR delta, GM_ADDR dq,
                                   GM_ADDR dk, GM_ADDR dv, const AttentionTiling& tiling) {
    coupled_pass<true>(q, k, v, grad, lse, delta, dq, dk, dv, tiling);
    PipeBarrier<PIPE_ALL>();
    coupled_pass<false>(q, k, v, grad, lse, delta, dq, dk, dv, tiling);
}

}  // namespace attention

#endif
