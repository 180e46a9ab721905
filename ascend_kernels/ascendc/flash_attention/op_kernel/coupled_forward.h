// softmax(scale · q kᵀ) v with an online softmax (arXiv 2205.14135), for Ascend 910A: everything in one core, nothing
// goes through global memory on the way. Never run on an NPU; see README.md.
//
// q, o: (N, S, H·D); k, v: (N, T, H·D), half, S and D multiples of 16; lse: (N, H, S) float, log Σ exp of each query's
// scores. The picture, too, is made transposed, vᵀ pᵀ (query block, channel, 16 queries), and turned at
// the end.
#ifndef MINDPANGU_COUPLED_FORWARD_H
#define MINDPANGU_COUPLED_FORWARD_H

#include "coupled_core.h"

namespace attention {

class CoupledForward {
public:
    __aicore__ inline CoupledForward(GM_ADDR q, GM_ADDR k, GM_ADDR v, GM_ADDR o, GM_ADDR lse,
                                     const AttentionTiling& tiling, TPipe& pipe)
        : t_(tiling), pipe_(pipe), pitch_(tiling.heads * tiling.width),
          blocks_((tiling.queries + tiling.rows - 1) / tiling.rows) {
        const uint64_t queries = uint64_t(t_.batch) * t_.queries, keys = uint64_t(t_.batch) * t_.keys;
        q_.SetGlobalBuffer(reinterpret_cast<__gm__ half*>(q), queries * pitch_);
        k_.SetGlobalBuffer(reinterpret_cast<__gm__ half*>(k), keys * pitch_);
        v_.SetGlobalBuffer(reinterpret_cast<__gm__ half*>(v), keys * pitch_);
        o_.SetGlobalBuffer(reinterpret_cast<__gm__ half*>(o), queries * pitch_);
        lse_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(lse), uint64_t(t_.batch) * t_.heads * t_.queries);
        const uint32_t d = t_.width, scores = t_.rows * t_.columns, picture = t_.rows * d;
        pipe.InitBuffer(queries_in_, 1, picture * sizeof(half));
        pipe.InitBuffer(tile_in_, 2, t_.columns * d * sizeof(half));
        probabilities_.init(pipe, scores * sizeof(half));
        multiplier_.init(pipe, t_.columns * d * sizeof(half), t_.rows * larger(d, t_.columns) * sizeof(half));
        pipe.InitBuffer(score_out_, 1, scores * sizeof(float));
        pipe.InitBuffer(product_out_, 1, picture * sizeof(float));
        pipe.InitBuffer(scores_, scores * sizeof(float));
        pipe.InitBuffer(spare_, larger(scores, picture) * sizeof(half));
        pipe.InitBuffer(picture_, picture * sizeof(float));
        pipe.InitBuffer(product_, picture * sizeof(float));
        pipe.InitBuffer(out_, 1, larger(scores, picture) * sizeof(half));
        for (uint32_t i = 0; i < 4; ++i) {
            pipe.InitBuffer(line_[i], t_.rows * sizeof(float));
        }
        pipe.InitBuffer(lse_out_, 1, t_.rows * sizeof(float));
    }

    // One task for each block of queries of each head of each picture.
    __aicore__ inline void process() {
        const uint32_t cores = GetBlockNum(), tasks = t_.batch * t_.heads * blocks_;
        for (uint32_t task = GetBlockIdx(); task < tasks; task += cores) {
            const uint32_t block = task % blocks_, head = task / blocks_ % t_.heads, picture = task / blocks_ / t_.heads;
            first_ = block * t_.rows;
            rows_ = smaller(t_.rows, t_.queries - first_);
            lanes_ = rows_ / FRACTAL;
            query_ = (uint64_t(picture) * t_.queries + first_) * pitch_ + head * t_.width;
            key_ = uint64_t(picture) * t_.keys * pitch_ + head * t_.width;
            at_line_ = (uint64_t(picture) * t_.heads + head) * t_.queries + first_;
            keys_ = t_.causal ? smaller(t_.keys, first_ + rows_) : t_.keys;
            draw();
        }
        probabilities_.finish(pipe_);
    }

private:
    __aicore__ inline void draw() {
        LocalTensor<float> maximum = line_[MAXIMUM].Get<float>(), sum = line_[SUM].Get<float>();
        LocalTensor<float> picture = picture_.Get<float>();
        Duplicate(maximum, LOWEST, static_cast<int32_t>(lanes_ * FRACTAL));
        Duplicate(sum, 0.0f, static_cast<int32_t>(lanes_ * FRACTAL));
        Duplicate(picture, 0.0f, static_cast<int32_t>(lanes_ * FRACTAL * t_.width));
        PipeBarrier<PIPE_V>();
        LocalTensor<half> queries = queries_in_.AllocTensor<half>();
        load_coupled(queries, q_[query_], rows_, t_.width, pitch_, t_.rows);
        queries_in_.EnQue(queries);
        queries = queries_in_.DeQue<half>();
        make_scores(queries, 0);
        for (uint32_t first = 0; first < keys_; first += t_.columns) {
            const uint32_t n = smaller(t_.columns, keys_ - first), n16 = up(n, FRACTAL);
            LocalTensor<float> product = score_out_.DeQue<float>(), scores = scores_.Get<float>();
            take_product(scores, product, n16 * lanes_ * FRACTAL);
            score_out_.FreeTensor(product);
            PipeBarrier<PIPE_V>();
            if (first + t_.columns < keys_) {  // the cube makes the next ones during this softmax
                make_scores(queries, first + t_.columns);
            }
            soften(scores, first, n, n16);
            add_product(first, n, n16);
        }
        queries_in_.FreeTensor(queries);
        finish();
    }

    __aicore__ inline LocalTensor<half> load(const GlobalTensor<half>& source, uint32_t first, uint32_t n) {
        LocalTensor<half> tile = tile_in_.AllocTensor<half>();
        load_coupled(tile, source[key_ + uint64_t(first) * pitch_], n, t_.width, pitch_, t_.columns);
        tile_in_.EnQue(tile);
        return tile_in_.DeQue<half>();
    }

    __aicore__ inline void make_scores(const LocalTensor<half>& queries, uint32_t first) {
        const uint32_t n = smaller(t_.columns, keys_ - first);
        LocalTensor<half> keys = load(k_, first, n);
        LocalTensor<float> product = score_out_.AllocTensor<float>();
        multiplier_.by_transposed(product, keys, t_.columns, queries, t_.rows, up(n, FRACTAL), lanes_ * FRACTAL, t_.width);
        tile_in_.FreeTensor(keys);
        score_out_.EnQue(product);
    }

    // scores become probabilities; maximum and sum are brought up to date, factor is what earlier tiles count now.
    __aicore__ inline void soften(const LocalTensor<float>& scores, uint32_t first, uint32_t n, uint32_t n16) {
        LocalTensor<float> maximum = line_[MAXIMUM].Get<float>(), sum = line_[SUM].Get<float>();
        LocalTensor<float> factor = line_[FACTOR].Get<float>(), fresh = line_[FRESH].Get<float>();
        LocalTensor<float> spare = spare_.Get<float>();
        const int32_t line = static_cast<int32_t>(lanes_ * FRACTAL), size = static_cast<int32_t>(n16 * lanes_ * FRACTAL);
        const Counted counted{n, n16, lanes_, t_.causal != 0, static_cast<int32_t>(first),
                              static_cast<int32_t>(first_)};
        counted.hide_others(scores, LOWEST);  // every query sees the first key, so that this becomes exp(−10³⁰) = 0
        over_rows<Of::MAX>(fresh, scores, spare, lanes_, n16);
        Max(fresh, fresh, maximum, line);
        PipeBarrier<PIPE_V>();
        Sub(factor, maximum, fresh, line);
        PipeBarrier<PIPE_V>();
        Muls(factor, factor, t_.scale, line);
        Adds(maximum, fresh, 0.0f, line);
        PipeBarrier<PIPE_V>();
        Exp(factor, factor, line);
        by_lane<On::SUB>(scores, fresh, lanes_, n16);
        Muls(scores, scores, t_.scale, size);
        PipeBarrier<PIPE_V>();
        Exp(scores, scores, size);
        Mul(sum, sum, factor, line);
        PipeBarrier<PIPE_V>();
        over_rows<Of::SUM>(fresh, scores, spare, lanes_, n16);
        Add(sum, sum, fresh, line);
    }

    // picture ← factor · picture + vᵀ pᵀ.
    __aicore__ inline void add_product(uint32_t first, uint32_t n, uint32_t n16) {
        const uint32_t size = n16 * lanes_ * FRACTAL, whole = lanes_ * FRACTAL * t_.width;
        LocalTensor<half> out = out_.AllocTensor<half>();
        Cast(out, scores_.Get<float>(), RoundMode::CAST_NONE, size);
        out_.EnQue(out);
        out = out_.DeQue<half>();
        LocalTensor<half> probabilities = probabilities_.put(out, size);
        out_.FreeTensor(out);
        LocalTensor<half> values = load(v_, first, n);
        LocalTensor<float> result = product_out_.AllocTensor<float>(), product = product_.Get<float>();
        multiplier_.of_transposed(result, values, t_.columns, probabilities, n16, t_.width, lanes_ * FRACTAL, n16, true);
        tile_in_.FreeTensor(values);
        probabilities_.read();
        product_out_.EnQue(result);
        by_lane<On::MUL>(picture_.Get<float>(), line_[FACTOR].Get<float>(), lanes_, t_.width);
        result = product_out_.DeQue<float>();
        take_product(product, result, whole);
        product_out_.FreeTensor(result);
        PipeBarrier<PIPE_V>();
        LocalTensor<float> picture = picture_.Get<float>();
        Add(picture, picture, product, static_cast<int32_t>(whole));
        PipeBarrier<PIPE_V>();
    }

    __aicore__ inline void finish() {
        LocalTensor<float> maximum = line_[MAXIMUM].Get<float>(), sum = line_[SUM].Get<float>();
        LocalTensor<float> picture = picture_.Get<float>(), logs = lse_out_.AllocTensor<float>();
        const uint32_t line = lanes_ * FRACTAL;
        Ln(logs, sum, static_cast<int32_t>(line));
        Muls(maximum, maximum, t_.scale, static_cast<int32_t>(line));
        PipeBarrier<PIPE_V>();
        Add(logs, logs, maximum, static_cast<int32_t>(line));
        lse_out_.EnQue(logs);
        logs = lse_out_.DeQue<float>();
        DataCopy(lse_[at_line_], logs, DataCopyParams(1, static_cast<uint16_t>(line / BLOCK), 0, 0));
        lse_out_.FreeTensor(logs);
        by_lane<On::DIV>(picture, sum, lanes_, t_.width);
        LocalTensor<half> narrow = spare_.Get<half>(), out = out_.AllocTensor<half>();
        Cast(narrow, picture, RoundMode::CAST_NONE, line * t_.width);
        PipeBarrier<PIPE_V>();
        for (uint32_t b = 0; b < lanes_; ++b) {
            for (uint32_t c = 0; c < t_.width; c += FRACTAL) {
                Transpose(out[c * line + b * FRACTAL * FRACTAL], narrow[(b * t_.width + c) * FRACTAL]);
            }
        }
        PipeBarrier<PIPE_V>();
        out_.EnQue(out);
        out = out_.DeQue<half>();
        store_coupled(o_[query_], out, rows_, t_.width, pitch_, line);
        out_.FreeTensor(out);
    }

    enum Line { MAXIMUM, SUM, FACTOR, FRESH };

    const AttentionTiling t_;
    TPipe& pipe_;
    const uint32_t pitch_, blocks_;         // between rows of q, k, v, o; blocks of queries
    uint32_t first_, rows_, lanes_, keys_;  // of this task: the first query, queries, their blocks of 16, keys seen
    uint64_t query_, key_, at_line_;
    GlobalTensor<half> q_, k_, v_, o_;
    GlobalTensor<float> lse_;

    TQue<TPosition::A1, 1> queries_in_;
    TQue<TPosition::B1, 2> tile_in_;  // keys and values in turn
    Operand probabilities_;
    Multiplier<half> multiplier_;
    TQue<TPosition::CO1, 1> score_out_, product_out_;
    TQue<TPosition::VECOUT, 1> out_, lse_out_;
    TBuf<TPosition::VECCALC> scores_, spare_, picture_, product_, line_[4];
};

}  // namespace attention

#endif
