// What both kernels ask of a vector core: rows of tiles between global memory and UB, and arithmetic by rows.
#ifndef MINDPANGU_ATTENTION_VECTOR_H
#define MINDPANGU_ATTENTION_VECTOR_H

#include "attention_tiling.h"
#include "kernel_operator.h"

namespace attention {

using namespace AscendC;

constexpr float LOWEST = -1e30f;  // a score that counts nothing, and from which exp() still gives a number

// `rows` rows of `columns` numbers, `pitch` apart in global memory, one after the other in UB.
__aicore__ inline void load_rows(const LocalTensor<float>& target, const GlobalTensor<float>& source, uint32_t rows,
                                 uint32_t columns, uint32_t pitch) {
    DataCopyExtParams copy(static_cast<uint16_t>(rows), static_cast<uint32_t>(columns * sizeof(float)),
                           static_cast<uint32_t>((pitch - columns) * sizeof(float)), 0, 0);
    DataCopyPad(target, source, copy, DataCopyPadExtParams<float>(false, 0, 0, 0.0f));
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

enum class By { SUB, MUL, DIV };

// rows (rows × columns) op= a number for each row, which stands in a block of eight of `numbers`.
template <By OP>
__aicore__ inline void by_row(const LocalTensor<float>& tile, const LocalTensor<float>& numbers, uint32_t rows,
                              uint32_t columns) {
    const uint8_t pitch = static_cast<uint8_t>(columns / BLOCK);
    const BinaryRepeatParams strides(1, 1, 0, pitch, pitch, 1);
    for (uint32_t c = 0; c < columns; c += STEP) {
        const uint64_t mask = smaller(STEP, columns - c);
        if constexpr (OP == By::SUB) {
            Sub(tile[c], tile[c], numbers, mask, rows, strides);
        } else if constexpr (OP == By::MUL) {
            Mul(tile[c], tile[c], numbers, mask, rows, strides);
        } else {
            Div(tile[c], tile[c], numbers, mask, rows, strides);
        }
    }
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

// numbers → blocks of eight equal ones, as by_row wants them.
__aicore__ inline void broadcast(const LocalTensor<float>& blocks, const LocalTensor<float>& numbers, uint32_t rows) {
    Brcb(blocks, numbers, static_cast<uint8_t>((rows + BLOCK - 1) / BLOCK), BrcbRepeatParams(1, BLOCK));
}

// Columns first … last − 1 of `rows` rows become `value`.
__aicore__ inline void fill_columns(const LocalTensor<float>& tile, float value, uint32_t rows, uint32_t columns,
                                    uint32_t first, uint32_t last) {
    for (uint32_t c = first / STEP * STEP; c < last; c += STEP) {
        const uint32_t from = first > c ? first - c : 0, to = smaller(STEP, last - c);
        const uint64_t below = to == STEP ? ~uint64_t(0) : (uint64_t(1) << to) - 1;
        uint64_t mask[2] = {below & ~((uint64_t(1) << from) - 1), 0};
        Duplicate(tile[c], value, mask, static_cast<uint8_t>(rows), 1, static_cast<uint8_t>(columns / BLOCK));
    }
}

// Which scores of a tile count: those of real columns, and with a causal mask those of keys up to the query.
struct Visible {
    uint32_t columns;     // that are real
    uint32_t whole;       // columns in UB, a multiple of 16
    bool causal;
    bool keys_are_rows;   // otherwise they are columns
    int32_t row, column;  // the places of the first ones

    __aicore__ inline void hide_others(const LocalTensor<float>& tile, float value, uint32_t rows) const {
        if (columns < whole) {
            fill_columns(tile, value, rows, whole, columns, whole);
        }
        if (!causal) {
            return;
        }
        PipeBarrier<PIPE_V>();
        for (uint32_t i = 0; i < rows; ++i) {
            const int32_t own = row + static_cast<int32_t>(i) - column;  // the column of its own place
            const LocalTensor<float> line = tile[i * whole];
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
