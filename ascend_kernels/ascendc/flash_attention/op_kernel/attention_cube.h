// What both kernels ask of a cube core: tiles from global memory into L1, products of two of them in L0C.
#ifndef MINDPANGU_ATTENTION_CUBE_H
#define MINDPANGU_ATTENTION_CUBE_H

#include "attention_tiling.h"
#include "kernel_operator.h"

namespace attention {

using namespace AscendC;

// Flags between a cube core and its two vector cores (mode 2).
constexpr uint16_t SCORES = 0;         // cube → vector: a tile of scores lies in the workspace
constexpr uint16_t PROBABILITIES = 1;  // vector → cube: so does what the softmax made of it
constexpr uint16_t PRODUCTS = 2;       // cube → vector: and its product with the values
constexpr uint8_t PAIRED = 2;

// A tile (rows × width) of `source`, whose rows lie `pitch` apart, to L1 in Nz order for `capacity` rows. What pads it
// to whole fractals becomes zero.
template <typename T>
__aicore__ inline void load_tile(const LocalTensor<T>& tile, const GlobalTensor<T>& source, uint32_t rows,
                                 uint32_t width, uint32_t pitch, uint32_t capacity) {
    const uint32_t whole_rows = up(rows, FRACTAL), whole_width = up(width, FRACTAL);
    const LocalTensor<half> words = tile.template ReinterpretCast<half>();  // a zero has the same bits in bfloat16_t
    if (rows < whole_rows) {
        InitConstValueParams<half> last(static_cast<uint16_t>(whole_width / FRACTAL), FRACTAL,
                                        static_cast<uint16_t>(capacity - FRACTAL), half(0));
        InitConstValue(words[(whole_rows - FRACTAL) * FRACTAL], last);
        PipeBarrier<PIPE_MTE2>();
    }
    if (width < whole_width) {
        InitConstValueParams<half> last(1, static_cast<uint16_t>(whole_rows), 0, half(0));
        InitConstValue(words[(whole_width - FRACTAL) * capacity], last);
        PipeBarrier<PIPE_MTE2>();
    }
    Nd2NzParams copy;
    copy.ndNum = 1;
    copy.nValue = rows;
    copy.dValue = width;
    copy.srcNdMatrixStride = 0;
    copy.srcDValue = pitch;
    copy.dstNzC0Stride = capacity;
    copy.dstNzNStride = 1;
    copy.dstNzMatrixStride = 0;
    DataCopy(tile, source, copy);
}

// The matrix unit's operands, two of each, so that loading and multiplying overlap.
template <typename T>
class Multiplier {
public:
    __aicore__ inline void init(TPipe& pipe, uint32_t left_bytes, uint32_t right_bytes) {
        pipe.InitBuffer(left_, 2, left_bytes);
        pipe.InitBuffer(right_, 2, right_bytes);
    }

    // product (m × n) = or += a (m × k) · bᵀ, where b lies in L1 as (n × k); capacities as in load_tile.
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

    // product (m × n) = aᵀ · b, where a lies in L1 as (k × m) and b as (k × n).
    __aicore__ inline void of_transposed(const LocalTensor<float>& product, const LocalTensor<T>& a, uint32_t a_capacity,
                                         const LocalTensor<T>& b, uint32_t b_capacity, uint32_t m, uint32_t n,
                                         uint32_t k) {
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
        multiply(product, m, n, k, true);
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

// A product (rows × columns) from L0C, where it has `capacity` rows, to global memory, row by row.
template <typename T>
__aicore__ inline void store_product(const GlobalTensor<T>& target, const LocalTensor<float>& product, uint32_t rows,
                                     uint32_t columns, uint32_t pitch, uint32_t capacity) {
    FixpipeParamsV220 store;
    store.nSize = columns;
    store.mSize = rows;
    store.srcStride = capacity;
    store.dstStride = pitch;
    store.ndNum = 1;
    store.srcNdStride = 0;
    store.dstNdStride = 0;
    if constexpr (IsSameType<T, half>::value) {
        store.quantPre = QuantMode_t::F322F16;
    } else if constexpr (IsSameType<T, bfloat16_t>::value) {
        store.quantPre = QuantMode_t::F322BF16;
    }
    Fixpipe<T, float, CFG_ROW_MAJOR>(target, product, store);
}

}  // namespace attention

#endif
