// What the kernels of a 910B ask of a vector core: rows of tiles between global memory and UB, and arithmetic by rows.
#ifndef MINDPANGU_ATTENTION_VECTOR_H
#define MINDPANGU_ATTENTION_VECTOR_H

#include "attention_tiling.h"
#include "kernel_operator.h"

namespace attention {

using namespace AscendC;

constexpr float LOWEST_HALF = -65504.0f;

template <typename S>
__aicore__ inline S lowest() {
    return S(IsSameType<S, half>::value ? LOWEST_HALF : LOWEST);
}

// `rows` rows of `columns` numbers, `pitch` apart in global memory, one after the other in UB.
// S: half or float.
template <typename S>
__aicore__ inline void load_rows(const LocalTensor<S>& target, const GlobalTensor<S>& source, uint32_t rows,
                                 uint32_t columns, uint32_t pitch) {
    DataCopyExtParams copy(static_cast<uint16_t>(rows), static_cast<uint32_t>(columns * sizeof(S)),
                           static_cast<uint32_t>((pitch - columns) * sizeof(S)), 0, 0);
    DataCopyPad(target, source, copy, DataCopyPadExtParams<S>(false, 0, 0, S(0)));
}

// The other way round; `columns` of the `whole` numbers that a row has in UB.
template <typename T>
__aicore__ inline void store_rows(const GlobalTensor<T>& target, const LocalTensor<T>& source, uint32_t rows,
                                  uint32_t columns, uint32_t whole, uint32_t pitch) {
    const uint32_t filled = up(columns * sizeof(T), 32), length = whole * sizeof(T);
    DataCopyExtParams copy(static_cast<uint16_t>(rows), static_cast<uint32_t>(columns * sizeof(T)),
                           (length - filled) / 32, static_cast<uint32_t>((pitch - columns) * sizeof(T)), 0);
    DataCopyPad(target, source, copy);
}

// Numbers that a vector instruction takes at once, and that 32 bytes hold.
template <typename S>
constexpr uint32_t LANES = 256 / sizeof(S);
template <typename S>
constexpr uint32_t IN_BLOCK = 32 / sizeof(S);

enum class By { SUB, MUL, DIV };
enum class Fold { MAX, SUM };

// rows (rows × columns) op= a number for each row, which stands in a block of 32 bytes of `numbers`.
template <By OP, typename S>
__aicore__ inline void by_row(const LocalTensor<S>& tile, const LocalTensor<S>& numbers, uint32_t rows,
                              uint32_t columns) {
    const uint8_t pitch = static_cast<uint8_t>(columns / IN_BLOCK<S>);
    const BinaryRepeatParams strides(1, 1, 0, pitch, pitch, 1);
    for (uint32_t c = 0; c < columns; c += LANES<S>) {
        const uint64_t mask = smaller(LANES<S>, columns - c);
        if constexpr (OP == By::SUB) {
            Sub(tile[c], tile[c], numbers, mask, rows, strides);
        } else if constexpr (OP == By::MUL) {
            Mul(tile[c], tile[c], numbers, mask, rows, strides);
        } else {
            Div(tile[c], tile[c], numbers, mask, rows, strides);
        }
    }
}

// A number for each row of `tile` (rows × columns): its greatest or its sum. `folded` has room for rows × LANES.
template <Fold OP, typename S>
__aicore__ inline void fold_rows(const LocalTensor<S>& numbers, const LocalTensor<S>& tile, const LocalTensor<S>& folded,
                                 uint32_t rows, uint32_t columns) {
    const uint8_t pitch = static_cast<uint8_t>(columns / IN_BLOCK<S>), own = LANES<S> / IN_BLOCK<S>;
    const BinaryRepeatParams strides(1, 1, 1, own, own, pitch);
    Duplicate(folded, OP == Fold::MAX ? lowest<S>() : S(0), static_cast<int32_t>(rows * LANES<S>));
    PipeBarrier<PIPE_V>();
    for (uint32_t c = 0; c < columns; c += LANES<S>) {
        const uint64_t mask = smaller(LANES<S>, columns - c);
        if constexpr (OP == Fold::MAX) {
            Max(folded, folded, tile[c], mask, rows, strides);
        } else {
            Add(folded, folded, tile[c], mask, rows, strides);
        }
        PipeBarrier<PIPE_V>();
    }
    const int32_t lanes = LANES<S>, repeats = static_cast<int32_t>(rows);
    if constexpr (OP == Fold::MAX) {
        WholeReduceMax(numbers, folded, lanes, repeats, 1, 1, own, ReduceOrder::ORDER_ONLY_VALUE);
    } else {
        WholeReduceSum(numbers, folded, lanes, repeats, 1, 1, own);
    }
    PipeBarrier<PIPE_V>();
}

// Each of the first `columns` of `whole` columns −= a number.
__aicore__ inline void minus_columns(const LocalTensor<float>& tile, const LocalTensor<float>& numbers, uint32_t rows,
                                     uint32_t columns, uint32_t whole) {
    const uint8_t pitch = static_cast<uint8_t>(whole / BLOCK);
    const BinaryRepeatParams strides(1, 1, 1, pitch, pitch, 0);
    for (uint32_t c = 0; c < columns; c += STEP) {
        Sub(tile[c], tile[c], numbers[c], smaller(STEP, columns - c), rows, strides);
    }
}

// numbers → blocks of equal ones, as by_row wants them.
template <typename S>
__aicore__ inline void broadcast(const LocalTensor<S>& blocks, const LocalTensor<S>& numbers, uint32_t rows) {
    Brcb(blocks, numbers, static_cast<uint8_t>((rows + BLOCK - 1) / BLOCK), BrcbRepeatParams(1, BLOCK));
}

// The `n` lowest bits, at most all.
__aicore__ inline uint64_t bits(uint32_t n) { return n >= 64 ? ~uint64_t(0) : (uint64_t(1) << n) - 1; }

// Columns first … last − 1 of `rows` rows become `value`.
template <typename S>
__aicore__ inline void fill_columns(const LocalTensor<S>& tile, S value, uint32_t rows, uint32_t columns, uint32_t first,
                                    uint32_t last) {
    const uint8_t pitch = static_cast<uint8_t>(columns / IN_BLOCK<S>);
    for (uint32_t c = first / LANES<S> * LANES<S>; c < last; c += LANES<S>) {
        const uint32_t from = first > c ? first - c : 0, to = smaller(LANES<S>, last - c);
        uint64_t mask[2] = {bits(to) & ~bits(from),
                            bits(to > 64 ? to - 64 : 0) & ~bits(from > 64 ? from - 64 : 0)};
        Duplicate(tile[c], value, mask, static_cast<uint8_t>(rows), 1, pitch);
    }
}

// Which scores of a tile count: those of real columns, and with a causal mask those of keys up to the query.
struct Visible {
    uint32_t columns;     // that are real
    uint32_t whole;       // columns in UB, a multiple of 16
    bool causal;
    bool keys_are_rows;   // otherwise they are columns
    int32_t row, column;  // the places of the first ones

    template <typename S>
    __aicore__ inline void hide_others(const LocalTensor<S>& tile, S value, uint32_t rows) const {
        if (columns < whole) {
            fill_columns(tile, value, rows, whole, columns, whole);
        }
        if (!causal) {
            return;
        }
        PipeBarrier<PIPE_V>();
        for (uint32_t i = 0; i < rows; ++i) {
            const int32_t own = row + static_cast<int32_t>(i) - column;  // the column of its own place
            const LocalTensor<S> line = tile[i * whole];
            const int32_t last = static_cast<int32_t>(columns);
            if (keys_are_rows && own > 0) {
                fill_columns(line, value, 1, whole, 0, own < last ? own : last);
            } else if (!keys_are_rows && own + 1 < last) {
                fill_columns(line, value, 1, whole, own < 0 ? 0 : own + 1, last);
            }
        }
    }
};

}  // namespace attention

#endif
