// softmax(scale · q kᵀ) v, tile by tile with an online softmax (arXiv 2205.14135), for Ascend 910B: products on the cube
// cores, the softmax on the vector cores, through a workspace in global memory. Never run on an NPU; see README.md.
//
// q, o: (N, S, H·D); k, v: (N, T, H·D), half or bfloat16_t; lse: (N, H, S) float, log Σ exp of each query's scores.
#include "attention_cube.h"
#include "attention_tiling.h"
#include "attention_vector.h"
#include "kernel_operator.h"

namespace attention {

template <typename T>
class Forward {
public:
    __aicore__ inline Forward(GM_ADDR q, GM_ADDR k, GM_ADDR v, GM_ADDR o, GM_ADDR lse, GM_ADDR workspace,
                              const AttentionTiling& tiling, TPipe& pipe)
        : t_(tiling), d_(up(tiling.width, FRACTAL)), pitch_(tiling.heads * tiling.width),
          blocks_((tiling.queries + tiling.rows - 1) / tiling.rows) {
        const uint32_t core = GetBlockIdx() / GetSubBlockNum();
        const uint64_t queries = uint64_t(t_.batch) * t_.queries, keys = uint64_t(t_.batch) * t_.keys;
        q_.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(q), queries * pitch_);
        k_.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(k), keys * pitch_);
        v_.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(v), keys * pitch_);
        o_.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(o), queries * pitch_);
        lse_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(lse), queries * t_.heads);
        const uint32_t scores = t_.rows * t_.columns, products = t_.rows * d_;
        GM_ADDR own = workspace + core * forward_plan(t_.width, t_.rows, t_.columns).workspace;
        scores_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(own), SLOTS * scores);
        own += SLOTS * scores * sizeof(float);
        products_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(own), SLOTS * products);
        own += SLOTS * products * sizeof(float);
        probabilities_.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(own), SLOTS * scores);
        const uint32_t wide = larger(d_, t_.columns);
        if ASCEND_IS_AIC {
            pipe.InitBuffer(queries_in_, 2, t_.rows * d_ * sizeof(T));
            pipe.InitBuffer(keys_in_, 2, t_.columns * d_ * sizeof(T));
            pipe.InitBuffer(values_in_, 2, t_.columns * d_ * sizeof(T));
            pipe.InitBuffer(probabilities_in_, 2, scores * sizeof(T));
            pipe.InitBuffer(product_, 2, t_.rows * wide * sizeof(float));
            multiplier_.init(pipe, t_.rows * wide * sizeof(T), t_.columns * d_ * sizeof(T));
        }
        if ASCEND_IS_AIV {
            const uint32_t half = first_half(t_.rows), line = up(half, BLOCK) * sizeof(float);
            pipe.InitBuffer(tile_in_, 2, half * wide * sizeof(float));
            pipe.InitBuffer(tile_out_, 2, half * wide * sizeof(T));
            pipe.InitBuffer(lse_out_, 2, line);
            pipe.InitBuffer(picture_, half * d_ * sizeof(float));
            pipe.InitBuffer(maximum_, line);
            pipe.InitBuffer(sum_, line);
            pipe.InitBuffer(factor_[0], line);
            pipe.InitBuffer(factor_[1], line);
            pipe.InitBuffer(fresh_, line);
            pipe.InitBuffer(part_, line);
            pipe.InitBuffer(broadcast_, BLOCK * line);
        }
    }

    // One task for each block of queries of each head of each picture, dealt out to the cores in turn.
    __aicore__ inline void process() {
        const uint32_t core = GetBlockIdx() / GetSubBlockNum(), tasks = t_.batch * t_.heads * blocks_;
        for (uint32_t task = core; task < tasks; task += GetBlockNum()) {
            const uint32_t head = task / blocks_ % t_.heads, picture = task / blocks_ / t_.heads;
            first_ = task % blocks_ * t_.rows;
            rows_ = smaller(t_.rows, t_.queries - first_);
            query_ = (uint64_t(picture) * t_.queries + first_) * pitch_ + head * t_.width;
            key_ = uint64_t(picture) * t_.keys * pitch_ + head * t_.width;
            line_ = (uint64_t(picture) * t_.heads + head) * t_.queries + first_;
            const uint32_t seen = t_.causal ? smaller(t_.keys, first_ + rows_) : t_.keys;
            tiles_ = (seen + t_.columns - 1) / t_.columns;
            if ASCEND_IS_AIC {
                multiply();
            }
            if ASCEND_IS_AIV {
                soften();
            }
        }
    }

private:
    __aicore__ inline uint32_t columns(uint32_t j) const {
        return smaller(t_.columns, t_.keys - j * t_.columns);
    }

    // ---- cube ----

    __aicore__ inline void multiply() {
        LocalTensor<T> queries = queries_in_.template AllocTensor<T>();
        load_tile(queries, q_[query_], rows_, t_.width, pitch_, t_.rows);
        queries_in_.EnQue(queries);
        queries = queries_in_.template DeQue<T>();
        make_scores(queries, 0);
        for (uint32_t j = 0; j < tiles_; ++j) {
            if (j + 1 < tiles_) {
                make_scores(queries, j + 1);
            }
            make_product(j);
        }
        queries_in_.FreeTensor(queries);
    }

    __aicore__ inline void make_scores(const LocalTensor<T>& queries, uint32_t j) {
        const uint32_t n = columns(j), m16 = up(rows_, FRACTAL), n16 = up(n, FRACTAL);
        LocalTensor<T> keys = keys_in_.template AllocTensor<T>();
        load_tile(keys, k_[key_ + uint64_t(j) * t_.columns * pitch_], n, t_.width, pitch_, t_.columns);
        keys_in_.EnQue(keys);
        keys = keys_in_.template DeQue<T>();
        LocalTensor<float> scores = product_.template AllocTensor<float>();
        multiplier_.by_transposed(scores, queries, t_.rows, keys, t_.columns, m16, n16, d_);
        keys_in_.FreeTensor(keys);
        product_.EnQue(scores);
        scores = product_.template DeQue<float>();
        store_product(scores_[j % SLOTS * t_.rows * t_.columns], scores, rows_, n16, t_.columns, m16);
        product_.FreeTensor(scores);
        CrossCoreSetFlag<PAIRED, PIPE_FIX>(SCORES);
    }

    __aicore__ inline void make_product(uint32_t j) {
        const uint32_t n = columns(j), m16 = up(rows_, FRACTAL), n16 = up(n, FRACTAL);
        LocalTensor<T> values = values_in_.template AllocTensor<T>();
        load_tile(values, v_[key_ + uint64_t(j) * t_.columns * pitch_], n, t_.width, pitch_, t_.columns);
        values_in_.EnQue(values);
        CrossCoreWaitFlag(PROBABILITIES);
        LocalTensor<T> probabilities = probabilities_in_.template AllocTensor<T>();
        load_tile(probabilities, probabilities_[j % SLOTS * t_.rows * t_.columns], rows_, n16, t_.columns, t_.rows);
        probabilities_in_.EnQue(probabilities);
        values = values_in_.template DeQue<T>();
        probabilities = probabilities_in_.template DeQue<T>();
        LocalTensor<float> product = product_.template AllocTensor<float>();
        multiplier_.by(product, probabilities, t_.rows, values, t_.columns, m16, d_, n16, true);
        values_in_.FreeTensor(values);
        probabilities_in_.FreeTensor(probabilities);
        product_.EnQue(product);
        product = product_.template DeQue<float>();
        store_product(products_[j % SLOTS * t_.rows * d_], product, rows_, d_, d_, m16);
        product_.FreeTensor(product);
        CrossCoreSetFlag<PAIRED, PIPE_FIX>(PRODUCTS);
    }

    // ---- vector: each of the two cores has its rows of the tile; one without rows only keeps step ----

    __aicore__ inline void soften() {
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
        for (uint32_t j = 0; j < tiles_; ++j) {
            if (j + 1 < tiles_) {
                make_probabilities(j + 1);
            }
            add_product(j);
        }
        if (count_ > 0) {
            finish();
        }
    }

    __aicore__ inline void make_probabilities(uint32_t j) {
        CrossCoreWaitFlag(SCORES);
        if (count_ > 0) {
            const uint32_t n = columns(j), n16 = up(n, FRACTAL), slot = j % SLOTS * t_.rows * t_.columns;
            LocalTensor<float> tile = tile_in_.template AllocTensor<float>();
            load_rows(tile, scores_[slot + own_ * t_.columns], count_, n16, t_.columns);
            tile_in_.EnQue(tile);
            tile = tile_in_.template DeQue<float>();
            Muls(tile, tile, t_.scale, static_cast<int32_t>(count_ * n16));
            PipeBarrier<PIPE_V>();
            const Visible visible{n, n16, t_.causal != 0, false, static_cast<int32_t>(first_ + own_),
                                  static_cast<int32_t>(j * t_.columns)};
            visible.hide_others(tile, LOWEST, count_);
            PipeBarrier<PIPE_V>();
            exponentiate(tile, n16, factor_[j % SLOTS].template Get<float>());
            LocalTensor<T> out = tile_out_.template AllocTensor<T>();
            Cast(out, tile, RoundMode::CAST_RINT, count_ * n16);
            tile_in_.FreeTensor(tile);
            tile_out_.EnQue(out);
            out = tile_out_.template DeQue<T>();
            store_rows(probabilities_[slot + own_ * t_.columns], out, count_, n16, n16, t_.columns);
            tile_out_.FreeTensor(out);
        }
        CrossCoreSetFlag<PAIRED, PIPE_MTE3>(PROBABILITIES);
    }

    // tile ← exp(tile − the greatest so far); maximum and sum brought up to date; factor: what earlier ones count now.
    __aicore__ inline void exponentiate(const LocalTensor<float>& tile, uint32_t n, const LocalTensor<float>& factor) {
        const int32_t lines = static_cast<int32_t>(up(count_, BLOCK)), pitch = static_cast<int32_t>(n / BLOCK);
        LocalTensor<float> maximum = maximum_.Get<float>(), sum = sum_.Get<float>(), fresh = fresh_.Get<float>();
        LocalTensor<float> part = part_.Get<float>(), blocks = broadcast_.Get<float>();
        Adds(fresh, maximum, 0.0f, lines);
        for (uint32_t c = 0; c < n; c += STEP) {
            WholeReduceMax(part, tile[c], static_cast<int32_t>(smaller(STEP, n - c)), static_cast<int32_t>(count_), 1, 1,
                           pitch, ReduceOrder::ORDER_ONLY_VALUE);
            PipeBarrier<PIPE_V>();
            Max(fresh, fresh, part, static_cast<int32_t>(count_));
            PipeBarrier<PIPE_V>();
        }
        Sub(factor, maximum, fresh, lines);
        broadcast(blocks, fresh, count_);
        PipeBarrier<PIPE_V>();
        Exp(factor, factor, lines);
        Adds(maximum, fresh, 0.0f, lines);
        by_row<By::SUB>(tile, blocks, count_, n);
        PipeBarrier<PIPE_V>();
        Mul(sum, sum, factor, lines);
        Exp(tile, tile, static_cast<int32_t>(count_ * n));
        PipeBarrier<PIPE_V>();
        for (uint32_t c = 0; c < n; c += STEP) {
            WholeReduceSum(part, tile[c], static_cast<int32_t>(smaller(STEP, n - c)), static_cast<int32_t>(count_), 1, 1,
                           pitch);
            PipeBarrier<PIPE_V>();
            Add(sum, sum, part, static_cast<int32_t>(count_));
            PipeBarrier<PIPE_V>();
        }
    }

    __aicore__ inline void add_product(uint32_t j) {
        CrossCoreWaitFlag(PRODUCTS);
        if (count_ == 0) {
            return;
        }
        LocalTensor<float> picture = picture_.Get<float>(), blocks = broadcast_.Get<float>();
        broadcast(blocks, factor_[j % SLOTS].template Get<float>(), count_);
        LocalTensor<float> product = tile_in_.template AllocTensor<float>();
        load_rows(product, products_[j % SLOTS * t_.rows * d_ + own_ * d_], count_, d_, d_);
        tile_in_.EnQue(product);
        PipeBarrier<PIPE_V>();
        by_row<By::MUL>(picture, blocks, count_, d_);
        product = tile_in_.template DeQue<float>();
        PipeBarrier<PIPE_V>();
        Add(picture, picture, product, static_cast<int32_t>(count_ * d_));
        PipeBarrier<PIPE_V>();
        tile_in_.FreeTensor(product);
    }

    __aicore__ inline void finish() {
        LocalTensor<float> picture = picture_.Get<float>(), blocks = broadcast_.Get<float>();
        broadcast(blocks, sum_.Get<float>(), count_);
        LocalTensor<float> line = lse_out_.template AllocTensor<float>();
        Ln(line, sum_.Get<float>(), static_cast<int32_t>(count_));
        PipeBarrier<PIPE_V>();
        Add(line, line, maximum_.Get<float>(), static_cast<int32_t>(count_));
        by_row<By::DIV>(picture, blocks, count_, d_);
        PipeBarrier<PIPE_V>();
        lse_out_.EnQue(line);
        line = lse_out_.template DeQue<float>();
        store_rows(lse_[line_ + own_], line, 1, count_, up(count_, BLOCK), count_);
        lse_out_.FreeTensor(line);
        LocalTensor<T> out = tile_out_.template AllocTensor<T>();
        Cast(out, picture, RoundMode::CAST_RINT, count_ * d_);
        tile_out_.EnQue(out);
        out = tile_out_.template DeQue<T>();
        store_rows(o_[query_ + uint64_t(own_) * pitch_], out, count_, t_.width, d_, pitch_);
        tile_out_.FreeTensor(out);
        PipeBarrier<PIPE_V>();
    }

    const AttentionTiling t_;
    const uint32_t d_, pitch_, blocks_;  // width in whole fractals; between rows of q, k, v, o; blocks of queries
    uint32_t first_, rows_, tiles_;      // of this task: the first query, queries, tiles of keys
    uint64_t query_, key_, line_;        // and where it begins in q and o, in k and v, in lse
    uint32_t own_, count_;               // rows of this vector core
    GlobalTensor<T> q_, k_, v_, o_, probabilities_;
    GlobalTensor<float> lse_, scores_, products_;

    TQue<TPosition::A1, 2> queries_in_, probabilities_in_;
    TQue<TPosition::B1, 2> keys_in_, values_in_;
    TQue<TPosition::CO1, 2> product_;
    Multiplier<T> multiplier_;

    TQue<TPosition::VECIN, 2> tile_in_;
    TQue<TPosition::VECOUT, 2> tile_out_, lse_out_;
    TBuf<TPosition::VECCALC> picture_, maximum_, sum_, factor_[SLOTS], fresh_, part_, broadcast_;
};

}  // namespace attention

extern "C" __global__ __aicore__ void mindpangu_flash_attention(GM_ADDR q, GM_ADDR k, GM_ADDR v, GM_ADDR o, GM_ADDR lse,
                                                                GM_ADDR workspace, GM_ADDR tiling) {
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_MIX_AIC_1_2);
    REGISTER_TILING_DEFAULT(AttentionTiling);
    GET_TILING_DATA(data, tiling);
    AscendC::TPipe pipe;
    attention::Forward<DTYPE_Q>(q, k, v, o, lse, AscendC::GetUserWorkspace(workspace), data, pipe).process();
}
