// Products of two tiles from L1 in L0C, on chips of both generations.
#ifndef MINDPANGU_MULTIPLIER_H
#define MINDPANGU_MULTIPLIER_H

#include "attention_tiling.h"
#include "kernel_operator.h"

namespace attention {

using namespace AscendC;

// The matrix unit's operands, two of each, so that loading and multiplying overlap.
template <typename T>
class Multiplier {
public:
    __aicore__ inline void init(TPipe& pipe, uint32_t left_bytes, uint32_t right_bytes) {
        pipe.InitBuffer(left_, 2, left_bytes);
        pipe.InitBuffer(right_, 2, right_bytes);
    }

    // product (m × n) = or += a (m × k) · bᵀ, where b lies in L1 as (n × k); capacities are the rows that L1 has room for.
    __aicore__ inline void by_transposed(const LocalTensor<float>& product, const LocalTensor<T>& a,
                                         uint32_t a_capacity, const LocalTensor<T>& b, uint32_t b_capacity, uint32_t m,
                                         uint32_t n, uint32_t k) {
        const uint32_t n16 = n / FRACTAL;
        load_left(a, a_capacity, m, k);
        LocalTensor<T> right = right_.template AllocTensor<T>();
        LoadData2DParams load;
        load.repeatTimes = n16;
        load.srcStride = 1;
        for (uint32_t i = 0; i < k / FRACTAL; ++i) {
            LoadData(right[i * n * FRACTAL], b[i * b_capacity * FRACTAL], load);
        }
        right_.EnQue(right);
        multiply(product, m, n, k, true);
    }

    // product (m × n) = or += a (m × k) · b, where b lies in L1 as (k × n).
    __aicore__ inline void by(const LocalTensor<float>& product, const LocalTensor<T>& a, uint32_t a_capacity,
                              const LocalTensor<T>& b, uint32_t b_capacity, uint32_t m, uint32_t n, uint32_t k,
                              bool first) {
        load_left(a, a_capacity, m, k);
        load_right(b, b_capacity, n, k);
        multiply(product, m, n, k, first);
    }

    // product (m × n) = or += aᵀ · b, where a lies in L1 as (k × m) and b as (k × n).
    __aicore__ inline void of_transposed(const LocalTensor<float>& product, const LocalTensor<T>& a, uint32_t a_capacity,
                                         const LocalTensor<T>& b, uint32_t b_capacity, uint32_t m, uint32_t n,
                                         uint32_t k, bool first) {
        LocalTensor<T> left = left_.template AllocTensor<T>();
        auto target = left.template ReinterpretCast<half>();
        auto source = a.template ReinterpretCast<half>();
        LoadData2DParams load;
        load.repeatTimes = k / FRACTAL;
        load.srcStride = 1;
        load.ifTranspose = true;
        for (uint32_t i = 0; i < m / FRACTAL; ++i) {
            LoadData(target[i * k * FRACTAL], source[i * a_capacity * FRACTAL], load);
        }
        left_.EnQue(left);
        load_right(b, b_capacity, n, k);
        multiply(product, m, n, k, first);
    }

private:
    __aicore__ inline void load_left(const LocalTensor<T>& a, uint32_t capacity, uint32_t m, uint32_t k) {
        LocalTensor<T> left = left_.template AllocTensor<T>();
        LoadData2DParams load;
        load.repeatTimes = k / FRACTAL;
        load.srcStride = capacity / FRACTAL;
        for (uint32_t i = 0; i < m / FRACTAL; ++i) {
            LoadData(left[i * k * FRACTAL], a[i * FRACTAL * FRACTAL], load);
        }
        left_.EnQue(left);
    }

    // From (k × n). Transposing is for 16-bit integers and half alone; it moves bits, so bfloat16_t goes as half.
    __aicore__ inline void load_right(const LocalTensor<T>& b, uint32_t capacity, uint32_t n, uint32_t k) {
        LocalTensor<T> right = right_.template AllocTensor<T>();
        auto target = right.template ReinterpretCast<half>();
        auto source = b.template ReinterpretCast<half>();
        LoadData2DParams load;
        load.repeatTimes = n / FRACTAL;
        load.srcStride = capacity / FRACTAL;
        load.ifTranspose = true;
        for (uint32_t i = 0; i < k / FRACTAL; ++i) {
            LoadData(target[i * n * FRACTAL], source[i * FRACTAL * FRACTAL], load);
        }
        right_.EnQue(right);
    }

    __aicore__ inline void multiply(const LocalTensor<float>& product, uint32_t m, uint32_t n, uint32_t k, bool first) {
        LocalTensor<T> left = left_.template DeQue<T>(), right = right_.template DeQue<T>();
        MmadParams shape;
        shape.m = m;
        shape.n = n;
        shape.k = k;
        shape.cmatrixInitVal = first;
        shape.cmatrixSource = false;
        PipeBarrier<PIPE_M>();
        Mmad(product, left, right, shape);
        left_.FreeTensor(left);
        right_.FreeTensor(right);
    }

    TQue<TPosition::A2, 2> left_;
    TQue<TPosition::B2, 2> right_;
};

}  // namespace attention

#endif
