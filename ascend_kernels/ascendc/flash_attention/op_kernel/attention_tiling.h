// What the host decides for a kernel, and the arithmetic that both follow. Plain C++: the host, the kernels, the
// simulator and, in the same words, ascend_kernels/tiling.py compute the same numbers.
#ifndef MINDPANGU_ATTENTION_TILING_H
#define MINDPANGU_ATTENTION_TILING_H

#include <cstdint>

// 1 where a kernel is compiled for a 910A, whose cores are cube and vector core in one; CANN 8.1 and 8.5 say it so.
#if (defined(__NPU_ARCH__) && __NPU_ARCH__ == 1001) || (defined(__CCE_AICORE__) && __CCE_AICORE__ == 100)
#define MINDPANGU_COUPLED 1
#else
#define MINDPANGU_COUPLED 0
#endif

struct AttentionTiling {
    uint32_t batch;    // N
    uint32_t heads;    // H
    uint32_t queries;  // S
    uint32_t keys;     // T
    uint32_t width;    // D, of a head
    uint32_t rows;     // of a tile of scores; a multiple of 16
    uint32_t columns;  // of a tile of scores; a multiple of 16
    uint32_t causal;   // 1: query i sees keys 0 … i
    float scale;       // usually 1/√D
    uint32_t span;     // forward: tiles of keys whose products with values are summed in L0C
    uint32_t strip;    // forward: rows whose softmax a vector core takes at once; a multiple of 8
    uint32_t half_scores;    // 1: scores leave the cube in half, 0: in float
    uint32_t deterministic;  // backward: 1: two passes, equal bits each time; 0: one, whose dq is added up in any order
};

namespace attention {

constexpr uint32_t FRACTAL = 16;     // side of the cube unit's blocks
constexpr uint32_t SLOTS = 2;        // tiles under way between the cube and the vector cores
constexpr uint32_t STEP = 64;        // float numbers a vector instruction takes at once
constexpr uint32_t BLOCK = 8;        // float numbers in 32 bytes
constexpr uint32_t WIDE = 32;        // columns that a tile should have
constexpr uint32_t SPAN = 8;         // tiles of keys at most whose products are summed
constexpr uint32_t L1 = 512 * 1024 - 256;
constexpr uint32_t L0 = 64 * 1024;
constexpr uint32_t L0C = 128 * 1024;
constexpr uint32_t UB = 184 * 1024 - 256;

constexpr float LOWEST = -1e30f;     // a score that counts nothing, and from which exp() still gives a number

constexpr uint32_t up(uint32_t n, uint32_t to) { return (n + to - 1) / to * to; }
constexpr uint32_t larger(uint32_t a, uint32_t b) { return a > b ? a : b; }
constexpr uint32_t smaller(uint32_t a, uint32_t b) { return a < b ? a : b; }

// Rows of a tile that the first vector core takes; the second has the rest.
constexpr uint32_t first_half(uint32_t rows) { return smaller(up((rows + 1) / 2, BLOCK), rows); }

// Floats of a tile, or of its product with values, that one vector core holds.
constexpr uint32_t half_tile(uint32_t rows, uint32_t other) { return first_half(rows) * other; }

struct Plan {
    uint32_t l1, l0a, l0b, l0c, ub;  // bytes in use
    uint64_t workspace;              // bytes for each cube core, a multiple of 512
    bool fits() const { return l1 <= L1 && l0a <= L0 && l0b <= L0 && l0c <= L0C && ub <= UB; }
};

struct ForwardTile {
    uint32_t rows, columns, span, strip;
    constexpr uint32_t size() const { return rows * columns; }
};

// Forward: scores (rows × span · columns, of `score` bytes) and products (rows × width) leave the cube, probabilities
// come back.
constexpr Plan forward_plan(uint32_t width, const ForwardTile& tile, uint32_t score) {
    const uint32_t d = up(width, FRACTAL), wide = larger(d, tile.columns), half = first_half(tile.rows);
    const uint32_t seen = tile.span * tile.columns;
    return Plan{
        2 * (2 * tile.rows * d + 2 * 2 * tile.columns * d + 2 * tile.size()),  // queries, keys, values, probabilities
        2 * 2 * tile.rows * wide,
        2 * 2 * tile.columns * d,
        2 * 4 * tile.rows * wide,
        (2 * score + (score == 2 ? 4 : 0)) * tile.strip * seen  // scores in, and from half in float
            + 2 * 2 * larger(tile.strip * seen, half * d)       // probabilities or the picture out
            + 2 * 4 * half * d + 4 * half * d                   // products in, the picture so far
            + 4 * tile.strip * STEP                             // rows folded to one step
            + 2 * 4 * up(half, BLOCK)                           // log-sum-exp out
            + (7 + BLOCK) * 4 * up(half, BLOCK),                // maximum, sum, two factors, three spare, broadcast
        up(SLOTS * ((score + 2) * tile.rows * seen + 4 * tile.rows * d), 512)};
}

// Backward, one pass: two tiles of scores leave the cube, two come back (one over queries), `sums` results stay in L0C
// till the end; with `adds` a tile of dq leaves, too.
constexpr Plan backward_plan(uint32_t width, uint32_t rows, uint32_t columns, uint32_t sums, uint32_t score, bool adds) {
    const uint32_t d = up(width, FRACTAL), wide = larger(d, columns), half = first_half(rows);
    const uint32_t vector = up(larger(half, columns), BLOCK);
    return Plan{
        2 * (2 * rows * d + 2 * 2 * columns * d + 2 * rows * columns),
        2 * 2 * rows * wide,
        2 * 2 * (adds ? larger(rows, columns) : columns) * d,
        2 * 4 * columns * (adds ? larger(rows, d) : rows) + sums * 4 * rows * d,
        2 * (2 * score + (score == 2 ? 4 : 0)) * half * columns  // tiles in, and from half in float
            + 2 * 2 * half * columns                             // tiles out
            + 2 * 2 * 4 * vector                                 // log-sum-exp and delta in
            + 2 * BLOCK * 4 * up(half, BLOCK),                   // their broadcasts
        up(SLOTS * (2 * score * rows * columns + sums * 2 * rows * columns), 512)};
}

// On a 910A, whose cores have everything and exchange nothing. `rows` are queries, `columns` keys; heads are a multiple
// of 16 wide. Forward: queries, two tiles of keys or values, probabilities in L1; scores and a product in L0C and UB.
constexpr uint32_t COUPLED_L1 = 1024 * 1024, COUPLED_L0C = 256 * 1024, COUPLED_UB = 248 * 1024;

constexpr bool coupled_fits(const Plan& plan) {
    return plan.l1 <= COUPLED_L1 && plan.l0a <= L0 && plan.l0b <= L0 && plan.l0c <= COUPLED_L0C && plan.ub <= COUPLED_UB;
}

constexpr Plan coupled_forward_plan(uint32_t d, uint32_t rows, uint32_t columns) {
    return Plan{
        2 * (rows * d + 2 * columns * d + rows * columns),
        2 * 2 * columns * d,
        2 * 2 * rows * larger(d, columns),
        4 * rows * columns + 4 * rows * d,
        4 * rows * columns + larger(2 * rows * columns, 2 * rows * d)  // scores; folded, or the picture in half
            + 2 * 4 * rows * d + 2 * rows * larger(d, columns)         // the picture so far, a product; what leaves
            + 5 * 4 * rows,                                            // maximum, sum, factor, fresh; log-sum-exp out
        0};
}

// Backward, both passes: two tiles of the block and two that go by, probabilities and gradients of scores in L1; two
// tiles of scores and two sums in L0C.
constexpr Plan coupled_backward_plan(uint32_t d, uint32_t rows, uint32_t columns) {
    const uint32_t longer = larger(rows, columns);
    return Plan{
        2 * (4 * longer * d + 2 * rows * columns),
        2 * 2 * columns * larger(d, rows),
        2 * 2 * longer * d,
        2 * 4 * rows * columns + 2 * 4 * longer * d,
        2 * 4 * rows * columns + 4 * longer * d + 2 * 2 * larger(rows * columns, longer * d) + 2 * 4 * rows,
        0};
}

struct Tile {
    uint32_t rows, columns;
    constexpr uint32_t size() const { return rows * columns; }
};

constexpr uint32_t SIDES[] = {128, 112, 96, 80, 64, 48, 32, 16};

// The tile that beats all others among those that fit; no larger than the data. {0, 0} where none does.
template <typename Fits, typename Beats>
constexpr Tile best_tile(uint32_t rows, uint32_t columns, Fits fits, Beats beats) {
    Tile best{0, 0};
    for (uint32_t r : SIDES) {
        for (uint32_t c : SIDES) {
            const Tile tile{smaller(r, up(rows, FRACTAL)), smaller(c, up(columns, FRACTAL))};
            if (fits(tile) && beats(tile, best)) {
                best = tile;
            }
        }
    }
    return best;
}

// The larger one, the wider of two equal ones.
constexpr bool is_larger(const Tile& a, const Tile& b) {
    return a.size() > b.size() || (a.size() == b.size() && a.columns > b.columns);
}

// That of more rows: the more, the less often its columns are read and dq added to. Not below WIDE columns, where there
// are as many.
constexpr bool is_taller(const Tile& a, const Tile& b) {
    const uint32_t a_wide = smaller(a.columns, WIDE), b_wide = smaller(b.columns, WIDE);
    const bool taller = a.rows > b.rows || (a.rows == b.rows && a.columns > b.columns);
    return a_wide > b_wide || (a_wide == b_wide && taller);
}

// First the tile, then as many as fit whose products are summed, then as many rows at once.
constexpr ForwardTile forward_tile(uint32_t queries, uint32_t keys, uint32_t width, uint32_t score) {
    const auto fits = [width, score](Tile t) {
        return forward_plan(width, ForwardTile{t.rows, t.columns, 1, BLOCK}, score).fits();
    };
    const Tile tile = best_tile(queries, keys, fits, is_larger);
    if (tile.size() == 0) {
        return ForwardTile{0, 0, 0, 0};
    }
    ForwardTile best{tile.rows, tile.columns, 1, BLOCK};
    // At least two spans, where there are two tiles: the cube makes one's scores during the other's softmax.
    const uint32_t tiles = (keys + tile.columns - 1) / tile.columns;
    for (uint32_t span = smaller(SPAN, (tiles + 1) / 2); span > 1 && best.span == 1; --span) {
        const ForwardTile wider{tile.rows, tile.columns, span, BLOCK};
        best = forward_plan(width, wider, score).fits() ? wider : best;
    }
    for (uint32_t strip = 2 * BLOCK; strip <= up(first_half(tile.rows), BLOCK); strip *= 2) {
        const ForwardTile higher{tile.rows, tile.columns, best.span, strip};
        best = forward_plan(width, higher, score).fits() ? higher : best;
    }
    return best;
}

// One tile for both passes of the deterministic kernel: the fuller one, over keys, decides.
constexpr Tile backward_tile(uint32_t queries, uint32_t keys, uint32_t width, uint32_t score, bool deterministic) {
    const auto fits = [width, score, deterministic](Tile t) {
        return backward_plan(width, t.rows, t.columns, 2, score, !deterministic).fits();
    };
    const uint32_t longer = larger(queries, keys);
    return deterministic ? best_tile(longer, longer, fits, is_larger) : best_tile(keys, queries, fits, is_taller);
}

constexpr Tile coupled_forward_tile(uint32_t queries, uint32_t keys, uint32_t width) {
    const auto fits = [width](Tile t) { return coupled_fits(coupled_forward_plan(width, t.rows, t.columns)); };
    return best_tile(queries, keys, fits, is_larger);
}

constexpr Tile coupled_backward_tile(uint32_t queries, uint32_t keys, uint32_t width) {
    const auto fits = [width](Tile t) { return coupled_fits(coupled_backward_plan(width, t.rows, t.columns)); };
    return best_tile(queries, keys, fits, is_larger);
}

}  // namespace attention

#endif
