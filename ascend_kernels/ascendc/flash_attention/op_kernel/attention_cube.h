// What the kernels of a 910B ask of a cube core: tiles from global memory into L1, products of two of them in L0C.
#ifndef MINDPANGU_ATTENTION_CUBE_H
#define MINDPANGU_ATTENTION_CUBE_H

#include "attention_tiling.h"
#include "kernel_operator.h"
#include "multiplier.h"

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
