// softmax(scale · q kᵀ) v with an online softmax (arXiv 2205.14135), for Ascend 910B: products on the cube cores, the
// softmax on the vector cores, through a workspace in global memory. Never run on an NPU; see README.md.
//
// A step takes a span of keys: some tiles, whose scores go to the vector cores together and whose products with values
// are summed in L0C, so that one product a span comes back. The next span's scores are made before.
//
// q, o: (N, S, H·D); k, v: (N, T, H·D), half or bfloat16_t; lse: (N, H, S) float, log Σ exp of each query's scores.
#ifndef MINDPANGU_SPLIT_FORWARD_H
#define MINDPANGU_SPLIT_FORWARD_H

#include "attention_cube.h"
#include "attention_tiling.h"
#include "attention_vector.h"
#include "kernel_operator.h"

namespace attention {

// T: what q, k, v and o are in; S: what scores leave the cube in.
template <typename T, typename S>
class Forward {
    static constexpr bool NARROW = IsSameType<S, half>::value;

public:
    __aicore__ inline Forward(GM_ADDR q, GM_ADDR k, GM_ADDR v, GM_ADDR o, GM_ADDR lse, GM_ADDR workspace,
                              const AttentionTiling& tiling, TPipe& pipe)
        : t_(tiling), d_(up(tiling.width, FRACTAL)), pitch_(tiling.heads * tiling.width),
          blocks_((tiling.queries + tiling.rows - 1) / tiling.rows), seen_(tiling.span * tiling.columns) {
        const uint32_t core = GetBlockIdx() / GetSubBlockNum();
        const uint64_t queries = uint64_t(t_.batch) * t_.queries, keys = uint64_t(t_.batch) * t_.keys;
        q_.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(q), queries * pitch_);
        k_.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(k), keys * pitch_);
        v_.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(v), keys * pitch_);
        o_.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(o), queries * pitch_);
        lse_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(lse), queries * t_.heads);
        const ForwardTile tile{t_.rows, t_.columns, t_.span, t_.strip};
        const uint32_t scores = t_.rows * seen_, products = t_.rows * d_;
        GM_ADDR own = workspace + core * forward_plan(t_.width, tile, sizeof(S)).workspace;
        scores_.SetGlobalBuffer(reinterpret_cast<__gm__ S*>(own), SLOTS * scores);
        own += SLOTS * scores * sizeof(S);
        products_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(own), SLOTS * products);
        own += SLOTS * products * sizeof(float);
        probabilities_.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(own), SLOTS * scores);
        if ASCEND_IS_AIC {
            const uint32_t wide = larger(d_, t_.columns);
            // Eight buffers of L1: as many as there are event ids of MTE1_MTE2.
            pipe.InitBuffer(queries_in_, 2, t_.rows * d_ * sizeof(T));
            pipe.InitBuffer(keys_in_, 2, t_.columns * d_ * sizeof(T));
            pipe.InitBuffer(values_in_, 2, t_.columns * d_ * sizeof(T));
            pipe.InitBuffer(probabilities_in_, 2, tile.size() * sizeof(T));
            pipe.InitBuffer(product_, 2, t_.rows * wide * sizeof(float));
            multiplier_.init(pipe, t_.rows * wide * sizeof(T), t_.columns * d_ * sizeof(T));
        }
        if ASCEND_IS_AIV {
            const uint32_t half = first_half(t_.rows), line = up(half, BLOCK) * sizeof(float);
            const uint32_t strip = t_.strip * seen_;
            pipe.InitBuffer(scores_in_, 2, strip * sizeof(S));
            pipe.InitBuffer(product_in_, 2, half * d_ * sizeof(float));
            pipe.InitBuffer(out_, 2, larger(strip, half * d_) * sizeof(T));
            pipe.InitBuffer(lse_out_, 2, line);
            if constexpr (NARROW) {
                pipe.InitBuffer(strip_, strip * sizeof(float));
            }
            pipe.InitBuffer(folded_, t_.strip * STEP * sizeof(float));
            pipe.InitBuffer(picture_, half * d_ * sizeof(float));
            pipe.InitBuffer(maximum_, line);
            pipe.InitBuffer(sum_, line);
            pipe.InitBuffer(factor_[0], line);
            pipe.InitBuffer(factor_[1], line);
            pipe.InitBuffer(fresh_, line);
            pipe.InitBuffer(part_, line);
            pipe.InitBuffer(greatest_, line);
            pipe.InitBuffer(broadcast_, BLOCK * line);
        }
    }

    // One task for each block of queries of each head of each picture. They are dealt out in rounds, every other one in
    // reverse; with a causal mask those that see most keys come first, so that all cores end at about the same time.
    __aicore__ inline void process() {
        const uint32_t core = GetBlockIdx() / GetSubBlockNum(), cores = GetBlockNum();
        const uint32_t all_heads = t_.batch * t_.heads, tasks = all_heads * blocks_;
        for (uint32_t dealt = 0; dealt < tasks; dealt += cores) {
            const uint32_t task = dealt + (dealt / cores % 2 == 0 ? core : cores - 1 - core);
            if (task >= tasks) {
                continue;
            }
            const uint32_t of_heads = t_.causal ? task % all_heads : task / blocks_;
            const uint32_t block = t_.causal ? blocks_ - 1 - task / all_heads : task % blocks_;
            const uint32_t head = of_heads % t_.heads, picture = of_heads / t_.heads;
            first_ = block * t_.rows;
            rows_ = smaller(t_.rows, t_.queries - first_);
            query_ = (uint64_t(picture) * t_.queries + first_) * pitch_ + head * t_.width;
            key_ = uint64_t(picture) * t_.keys * pitch_ + head * t_.width;
            line_ = (uint64_t(picture) * t_.heads + head) * t_.queries + first_;
            keys_ = t_.causal ? smaller(t_.keys, up(first_ + rows_, t_.columns)) : t_.keys;
            const uint32_t spans = (keys_ + seen_ - 1) / seen_;
            if ASCEND_IS_AIC {
                multiply(spans);
            }
            if ASCEND_IS_AIV {
                soften(spans);
            }
        }
    }

private:
    // Keys of span j, and of its tile i.
    __aicore__ inline uint32_t keys_of(uint32_t j) const { return smaller(seen_, keys_ - j * seen_); }
    __aicore__ inline uint32_t columns(uint32_t j, uint32_t i) const {
        return smaller(t_.columns, keys_of(j) - i * t_.columns);
    }
    __aicore__ inline uint32_t tiles(uint32_t j) const { return (keys_of(j) + t_.columns - 1) / t_.columns; }
    __aicore__ inline uint32_t slot(uint32_t j) const { return j % SLOTS * t_.rows * seen_; }

    // ---- cube ----

    __aicore__ inline void multiply(uint32_t spans) {
        LocalTensor<T> queries = queries_in_.template AllocTensor<T>();
        load_tile(queries, q_[query_], rows_, t_.width, pitch_, t_.rows);
        queries_in_.EnQue(queries);
        queries = queries_in_.template DeQue<T>();
        make_scores(queries, 0);
        for (uint32_t j = 0; j < spans; ++j) {
            if (j + 1 < spans) {
                make_scores(queries, j + 1);
            }
            make_product(j);
        }
        queries_in_.FreeTensor(queries);
    }

    __aicore__ inline void make_scores(const LocalTensor<T>& queries, uint32_t j) {
        const uint32_t m16 = up(rows_, FRACTAL);
        for (uint32_t i = 0; i < tiles(j); ++i) {
            const uint32_t n = columns(j, i), n16 = up(n, FRACTAL), first = i * t_.columns;
            LocalTensor<T> keys = keys_in_.template AllocTensor<T>();
            load_tile(keys, k_[key_ + uint64_t(j * seen_ + first) * pitch_], n, t_.width, pitch_, t_.columns);
            keys_in_.EnQue(keys);
            keys = keys_in_.template DeQue<T>();
            LocalTensor<float> scores = product_.template AllocTensor<float>();
            multiplier_.by_transposed(scores, queries, t_.rows, keys, t_.columns, m16, n16, d_);
            keys_in_.FreeTensor(keys);
            product_.EnQue(scores);
            scores = product_.template DeQue<float>();
            store_product(scores_[slot(j) + first], scores, rows_, n16, seen_, m16);
            product_.FreeTensor(scores);
        }
        CrossCoreSetFlag<PAIRED, PIPE_FIX>(SCORES);
    }

    __aicore__ inline void make_product(uint32_t j) {
        const uint32_t m16 = up(rows_, FRACTAL);
        LocalTensor<float> product = product_.template AllocTensor<float>();
        CrossCoreWaitFlag(PROBABILITIES);
        for (uint32_t i = 0; i < tiles(j); ++i) {
            const uint32_t n = columns(j, i), n16 = up(n, FRACTAL), first = i * t_.columns;
            LocalTensor<T> values = values_in_.template AllocTensor<T>();
            load_tile(values, v_[key_ + uint64_t(j * seen_ + first) * pitch_], n, t_.width, pitch_, t_.columns);
            values_in_.EnQue(values);
            LocalTensor<T> probabilities = probabilities_in_.template AllocTensor<T>();
            load_tile(probabilities, probabilities_[slot(j) + first], rows_, n16, seen_, t_.rows);
            probabilities_in_.EnQue(probabilities);
            values = values_in_.template DeQue<T>();
            probabilities = probabilities_in_.template DeQue<T>();
            multiplier_.by(product, probabilities, t_.rows, values, t_.columns, m16, d_, n16, i == 0);
            values_in_.FreeTensor(values);
            probabilities_in_.FreeTensor(probabilities);
        }
        product_.EnQue(product);
        product = product_.template DeQue<float>();
        store_product(products_[j % SLOTS * t_.rows * d_], product, rows_, d_, d_, m16);
        product_.FreeTensor(product);
        CrossCoreSetFlag<PAIRED, PIPE_FIX>(PRODUCTS);
    }

    // ---- vector: each of the two cores has its rows of the tile; one without rows only keeps step ----

    __aicore__ inline void soften(uint32_t spans) {
        const uint32_t split = first_half(rows_);
        own_ = GetSubBlockIdx() == 0 ? 0 : split;
        count_ = GetSubBlockIdx() == 0 ? split : rows_ - split;
        if (count_ > 0) {
            const int32_t lines = static_cast<int32_t>(up(count_, BLOCK));
            Duplicate(maximum_.Get<float>(), LOWEST, lines);
            Duplicate(sum_.Get<float>(), 0.0f, lines);
            Duplicate(picture_.Get<float>(), 0.0f, static_cast<int32_t>(count_ * d_));
            PipeBarrier<PIPE_V>();
        }
        make_probabilities(0);
        for (uint32_t j = 0; j < spans; ++j) {
            if (j + 1 < spans) {
                make_probabilities(j + 1);
            }
            add_product(j);
        }
        if (count_ > 0) {
            finish();
        }
    }

    __aicore__ inline void make_probabilities(uint32_t j) {
        const uint32_t n = keys_of(j), n16 = up(n, FRACTAL);
        CrossCoreWaitFlag(SCORES);
        for (uint32_t first = 0; first < count_; first += t_.strip) {
            const uint32_t rows = smaller(t_.strip, count_ - first), from = slot(j) + (own_ + first) * seen_;
            LocalTensor<S> scores = scores_in_.template AllocTensor<S>();
            load_rows(scores, scores_[from], rows, n16, seen_);
            scores_in_.EnQue(scores);
            scores = scores_in_.template DeQue<S>();
            const Visible visible{n, n16, t_.causal != 0, false, static_cast<int32_t>(first_ + own_ + first),
                                  static_cast<int32_t>(j * seen_)};
            const LocalTensor<float> factor = factor_[j % SLOTS].template Get<float>()[first];
            subtract_greatest(scores, visible, first, rows, factor);
            LocalTensor<T> out = out_.template AllocTensor<T>();
            exponentiate(out, scores, visible, first, rows, factor);
            out_.EnQue(out);
            out = out_.template DeQue<T>();
            store_rows(probabilities_[from], out, rows, n16, n16, seen_);
            out_.FreeTensor(out);
        }
        CrossCoreSetFlag<PAIRED, PIPE_MTE3>(PROBABILITIES);
    }

    // scores ← scale · (scores − the greatest so far), which is brought up to date; factor: what earlier spans count
    // now. A score too great for half counts as the greatest that it holds.
    __aicore__ inline void subtract_greatest(const LocalTensor<S>& scores, const Visible& visible, uint32_t first,
                                             uint32_t rows, const LocalTensor<float>& factor) {
        const int32_t lines = static_cast<int32_t>(up(rows, BLOCK)), size = static_cast<int32_t>(rows * visible.whole);
        LocalTensor<float> maximum = maximum_.Get<float>()[first], fresh = fresh_.Get<float>();
        LocalTensor<float> part = part_.Get<float>();
        if constexpr (NARROW) {
            Mins(scores, scores, S(-LOWEST_HALF), size);
            PipeBarrier<PIPE_V>();
        }
        visible.hide_others(scores, lowest<S>(), rows);
        PipeBarrier<PIPE_V>();
        LocalTensor<S> greatest = greatest_.template Get<S>(), blocks = broadcast_.template Get<S>();
        fold_rows<Fold::MAX>(greatest, scores, folded_.template Get<S>(), rows, visible.whole);
        if constexpr (NARROW) {
            Cast(part, greatest, RoundMode::CAST_NONE, rows);
        } else {
            Adds(part, greatest, 0.0f, static_cast<int32_t>(rows));
        }
        Adds(fresh, maximum, 0.0f, lines);
        PipeBarrier<PIPE_V>();
        Max(fresh, fresh, part, static_cast<int32_t>(rows));
        PipeBarrier<PIPE_V>();
        Sub(factor, maximum, fresh, lines);
        if constexpr (NARROW) {
            Cast(greatest, fresh, RoundMode::CAST_RINT, static_cast<uint32_t>(lines));
        } else {
            Adds(greatest, fresh, 0.0f, lines);
        }
        PipeBarrier<PIPE_V>();
        Muls(factor, factor, t_.scale, lines);
        Adds(maximum, fresh, 0.0f, lines);
        broadcast(blocks, greatest, rows);
        PipeBarrier<PIPE_V>();
        Exp(factor, factor, lines);
        by_row<By::SUB>(scores, blocks, rows, visible.whole);
        PipeBarrier<PIPE_V>();
        Muls(scores, scores, S(t_.scale), size);
        PipeBarrier<PIPE_V>();
    }

    // out ← exp(scores), and its rows' sums added to what the factors leave of the earlier ones. Frees the scores.
    __aicore__ inline void exponentiate(const LocalTensor<T>& out, LocalTensor<S>& scores, const Visible& visible,
                                        uint32_t first, uint32_t rows, const LocalTensor<float>& factor) {
        const int32_t size = static_cast<int32_t>(rows * visible.whole);
        LocalTensor<float> sum = sum_.Get<float>()[first], part = part_.Get<float>(), strip;
        if constexpr (NARROW) {
            strip = strip_.Get<float>();
            Cast(strip, scores, RoundMode::CAST_NONE, rows * visible.whole);
            PipeBarrier<PIPE_V>();
            scores_in_.FreeTensor(scores);
        } else {
            strip = scores;
        }
        Mul(sum, sum, factor, static_cast<int32_t>(up(rows, BLOCK)));
        Exp(strip, strip, size);
        PipeBarrier<PIPE_V>();
        visible.hide_others(strip, 0.0f, rows);
        PipeBarrier<PIPE_V>();
        fold_rows<Fold::SUM>(part, strip, folded_.Get<float>(), rows, visible.whole);
        Add(sum, sum, part, static_cast<int32_t>(rows));
        Cast(out, strip, RoundMode::CAST_RINT, rows * visible.whole);
        if constexpr (!NARROW) {
            scores_in_.FreeTensor(scores);
        }
    }

    __aicore__ inline void add_product(uint32_t j) {
        CrossCoreWaitFlag(PRODUCTS);
        if (count_ == 0) {
            return;
        }
        LocalTensor<float> picture = picture_.Get<float>(), blocks = broadcast_.Get<float>();
        broadcast(blocks, factor_[j % SLOTS].template Get<float>(), count_);
        LocalTensor<float> product = product_in_.template AllocTensor<float>();
        load_rows(product, products_[j % SLOTS * t_.rows * d_ + own_ * d_], count_, d_, d_);
        product_in_.EnQue(product);
        PipeBarrier<PIPE_V>();
        by_row<By::MUL>(picture, blocks, count_, d_);
        product = product_in_.template DeQue<float>();
        PipeBarrier<PIPE_V>();
        Add(picture, picture, product, static_cast<int32_t>(count_ * d_));
        PipeBarrier<PIPE_V>();
        product_in_.FreeTensor(product);
    }

    __aicore__ inline void finish() {
        LocalTensor<float> picture = picture_.Get<float>(), blocks = broadcast_.Get<float>();
        broadcast(blocks, sum_.Get<float>(), count_);
        LocalTensor<float> line = lse_out_.template AllocTensor<float>();
        Ln(line, sum_.Get<float>(), static_cast<int32_t>(count_));
        Muls(maximum_.Get<float>(), maximum_.Get<float>(), t_.scale, static_cast<int32_t>(count_));
        PipeBarrier<PIPE_V>();
        Add(line, line, maximum_.Get<float>(), static_cast<int32_t>(count_));
        by_row<By::DIV>(picture, blocks, count_, d_);
        PipeBarrier<PIPE_V>();
        lse_out_.EnQue(line);
        line = lse_out_.template DeQue<float>();
        store_rows(lse_[line_ + own_], line, 1, count_, up(count_, BLOCK), count_);
        lse_out_.FreeTensor(line);
        LocalTensor<T> out = out_.template AllocTensor<T>();
        Cast(out, picture, RoundMode::CAST_RINT, count_ * d_);
        out_.EnQue(out);
        out = out_.template DeQue<T>();
        store_rows(o_[query_ + uint64_t(own_) * pitch_], out, count_, t_.width, d_, pitch_);
        out_.FreeTensor(out);
        PipeBarrier<PIPE_V>();
    }

    const AttentionTiling t_;
    const uint32_t d_, pitch_, blocks_;  // width in whole fractals; between rows of q, k, v, o; blocks of queries
    const uint32_t seen_;                // keys of a span
    uint32_t first_, rows_, keys_;       // of this task: the first query, queries, keys up to the last that is seen
    uint64_t query_, key_, line_;        // and where it begins in q and o, in k and v, in lse
    uint32_t own_, count_;               // rows of this vector core
    GlobalTensor<T> q_, k_, v_, o_, probabilities_;
    GlobalTensor<S> scores_;
    GlobalTensor<float> lse_, products_;

    TQue<TPosition::A1, 2> queries_in_, probabilities_in_;
    TQue<TPosition::B1, 2> keys_in_, values_in_;
    TQue<TPosition::CO1, 2> product_;
    Multiplier<T> multiplier_;

    TQue<TPosition::VECIN, 2> scores_in_, product_in_;
    TQue<TPosition::VECOUT, 2> out_, lse_out_;
    TBuf<TPosition::VECCALC> strip_, folded_, picture_, maximum_, sum_, factor_[SLOTS], fresh_, part_;
    TBuf<TPosition::VECCALC> greatest_, broadcast_;
};

}  // namespace attention

#endif
