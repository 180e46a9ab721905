// What the kernels of a 910A share, whose cores are cube and vector core in one: tiles from global memory to L1, scores
// from L0C to UB and, as operands, back to L1. Its data path is undocumented in part. Never run on an NPU; see README.md.
//
// Scores are made transposed, k qᵀ: 16 queries lie beside each other, as L0C has them (query block, key, 16 queries),
// so that what belongs to a query is a lane, no row is ever reduced, and 16 bits of them are an operand in L1 as they
// come. These chips have neither Brcb nor DataCopyPad: tiles move by whole blocks of 32 bytes, so that widths and the
// number of queries are multiples of 16.
#ifndef MINDPANGU_COUPLED_CORE_H
#define MINDPANGU_COUPLED_CORE_H

#include "attention_tiling.h"
#include "kernel_operator.h"
#include "multiplier.h"

namespace attention {

using namespace AscendC;

constexpr uint32_t BYTES = 32;          // of a block
constexpr uint32_t HALVES = 16;         // halves in it
constexpr uint32_t BLOCKS_OF_LANES = FRACTAL / BLOCK;  // a row of lanes in float, in blocks

enum class On { SUB, MUL, DIV };
enum class Of { MAX, SUM };

// A tile (rows × width) of `source`, whose rows lie `pitch` apart, to L1 in Nz order for `capacity` rows. Rows that pad
// it to whole fractals repeat its own: numbers like any, whose probabilities the kernels make zero.
__aicore__ inline void load_coupled(const LocalTensor<half>& tile, const GlobalTensor<half>& source, uint32_t rows,
                                    uint32_t width, uint32_t pitch, uint32_t capacity) {
    const uint32_t whole = up(rows, FRACTAL);
    for (uint32_t at = 0; at < whole; at += rows) {
        const DataCopyParams copy(static_cast<uint16_t>(smaller(rows, whole - at)), 1,
                                  static_cast<uint16_t>(pitch / HALVES - 1), 0);
        for (uint32_t c = 0; c < width; c += FRACTAL) {
            DataCopy(tile[c * capacity + at * FRACTAL], source[c], copy);
        }
    }
}

// The other way round, from UB: (width / 16, capacity, 16) to rows of `target`.
__aicore__ inline void store_coupled(const GlobalTensor<half>& target, const LocalTensor<half>& tile, uint32_t rows,
                                     uint32_t width, uint32_t pitch, uint32_t capacity) {
    const DataCopyParams copy(static_cast<uint16_t>(rows), 1, 0, static_cast<uint16_t>(pitch / HALVES - 1));
    for (uint32_t c = 0; c < width; c += FRACTAL) {
        DataCopy(target[c], tile[c * capacity], copy);
    }
}

// A product of whole fractals from L0C to UB, in the order that it has.
__aicore__ inline void take_product(const LocalTensor<float>& target, const LocalTensor<float>& product,
                                    uint32_t numbers) {
    DataCopyEnhancedParams fractals;
    fractals.blockMode = BlockMode::BLOCK_MODE_MATRIX;
    DataCopy(target, product, DataCopyParams(1, static_cast<uint16_t>(numbers / (FRACTAL * FRACTAL)), 0, 0), fractals);
}

// tile (blocks, rows, 16) op= each lane's number of `line` (blocks, 16); rows are a multiple of 8.
template <On OP>
__aicore__ inline void by_lane(const LocalTensor<float>& tile, const LocalTensor<float>& line, uint32_t blocks,
                               uint32_t rows) {
    // Eight rows of eight lanes at once.
    const BinaryRepeatParams strides(BLOCKS_OF_LANES, BLOCKS_OF_LANES, 0, 8 * BLOCKS_OF_LANES, 8 * BLOCKS_OF_LANES, 0);
    const uint8_t times = static_cast<uint8_t>(rows / 8);
    for (uint32_t b = 0; b < blocks; ++b) {
        for (uint32_t lane = 0; lane < FRACTAL; lane += BLOCK) {
            const LocalTensor<float> part = tile[b * rows * FRACTAL + lane], numbers = line[b * FRACTAL + lane];
            if constexpr (OP == On::SUB) {
                Sub(part, part, numbers, STEP, times, strides);
            } else if constexpr (OP == On::MUL) {
                Mul(part, part, numbers, STEP, times, strides);
            } else {
                Div(part, part, numbers, STEP, times, strides);
            }
        }
    }
    PipeBarrier<PIPE_V>();
}

template <Of OP>
__aicore__ inline void fold(const LocalTensor<float>& target, const LocalTensor<float>& one,
                            const LocalTensor<float>& other, uint32_t numbers) {
    if constexpr (OP == Of::MAX) {
        Max(target, one, other, static_cast<int32_t>(numbers));
    } else {
        Add(target, one, other, static_cast<int32_t>(numbers));
    }
}

// line (blocks, 16) = the greatest, or the sum, of each lane of `tile` (blocks, rows, 16); rows are even. `spare` has
// half the tile's size.
template <Of OP>
__aicore__ inline void over_rows(const LocalTensor<float>& line, const LocalTensor<float>& tile,
                                 const LocalTensor<float>& spare, uint32_t blocks, uint32_t rows) {
    const uint32_t half_of = rows / 2 * FRACTAL;
    for (uint32_t b = 0; b < blocks; ++b) {
        fold<OP>(spare[b * half_of], tile[b * 2 * half_of], tile[b * 2 * half_of + half_of], half_of);
    }
    PipeBarrier<PIPE_V>();
    for (uint32_t left = rows / 2; left > 1;) {
        const uint32_t kept = (left + 1) / 2;
        for (uint32_t b = 0; b < blocks; ++b) {
            const LocalTensor<float> part = spare[b * half_of];
            fold<OP>(part, part, part[kept * FRACTAL], (left - kept) * FRACTAL);
        }
        PipeBarrier<PIPE_V>();
        left = kept;
    }
    for (uint32_t b = 0; b < blocks; ++b) {
        Adds(line[b * FRACTAL], spare[b * half_of], 0.0f, static_cast<int32_t>(FRACTAL));
    }
    PipeBarrier<PIPE_V>();
}

// Which scores of a tile (blocks, rows, 16) count: those of keys that are there, and with a causal mask those that a
// query may see.
struct Counted {
    uint32_t keys;          // that are real
    uint32_t rows, blocks;  // of the tile
    bool causal;
    int32_t key, query;     // the places of the first ones

    // The others become `value`.
    __aicore__ inline void hide_others(const LocalTensor<float>& tile, float value) const {
        for (uint32_t b = 0; b < blocks; ++b) {
            const LocalTensor<float> part = tile[b * rows * FRACTAL];
            // Of this block's queries the first one sees the keys before `from`, and none those after `to`.
            const int32_t first = query + static_cast<int32_t>(b * FRACTAL) - key, end = static_cast<int32_t>(keys);
            const int32_t from = causal && first + 1 < end ? larger_of(first + 1, 0) : end;
            const int32_t to = causal && first + 16 < end ? larger_of(first + 16, 0) : end;
            for (int32_t r = from; r < to; ++r) {
                uint64_t hidden[2] = {(uint64_t(1) << (r - first)) - 1, 0};
                Duplicate(part[r * FRACTAL], value, hidden, 1, 1, 8);
            }
            if (static_cast<uint32_t>(to) < rows) {
                Duplicate(part[to * FRACTAL], value, static_cast<int32_t>((rows - to) * FRACTAL));
            }
        }
        PipeBarrier<PIPE_V>();
    }

    static __aicore__ inline int32_t larger_of(int32_t a, int32_t b) { return a > b ? a : b; }
};

// What the vector unit made, as an operand in L1: written by MTE3, read by MTE1.
class Operand {
public:
    __aicore__ inline void init(TPipe& pipe, uint32_t bytes) {
        pipe.InitBuffer(buffer_, bytes);
        written_ = pipe.AllocEventID<HardEvent::MTE3_MTE1>();
        read_ = pipe.AllocEventID<HardEvent::MTE1_MTE3>();
        SetFlag<HardEvent::MTE1_MTE3>(read_);
    }

    // From UB, once the last one was read.
    __aicore__ inline LocalTensor<half> put(const LocalTensor<half>& source, uint32_t numbers) {
        LocalTensor<half> target = buffer_.Get<half>();
        WaitFlag<HardEvent::MTE1_MTE3>(read_);
        DataCopy(target, source, DataCopyParams(1, static_cast<uint16_t>(numbers / HALVES), 0, 0));
        SetFlag<HardEvent::MTE3_MTE1>(written_);
        WaitFlag<HardEvent::MTE3_MTE1>(written_);
        return target;
    }

    // It may be written again, when all that was asked for until now has been read.
    __aicore__ inline void read() { SetFlag<HardEvent::MTE1_MTE3>(read_); }

    // In the reverse order of `init`, if there are several.
    __aicore__ inline void finish(TPipe& pipe) {
        WaitFlag<HardEvent::MTE1_MTE3>(read_);
        pipe.ReleaseEventID<HardEvent::MTE1_MTE3>(read_);
        pipe.ReleaseEventID<HardEvent::MTE3_MTE1>(written_);
    }

private:
    TBuf<TPosition::A1> buffer_;
    TEventID written_, read_;
};

}  // namespace attention

#endif
