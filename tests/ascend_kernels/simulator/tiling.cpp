// The tiling's arithmetic, for ctypes.
#include <initializer_list>

#include "attention_tiling.h"

namespace {
uint64_t* write(uint64_t* out, const attention::Tile& tile, const attention::Plan& plan) {
    for (uint64_t value : {uint64_t(tile.rows), uint64_t(tile.columns), uint64_t(plan.l1), uint64_t(plan.l0a),
                           uint64_t(plan.l0b), uint64_t(plan.l0c), uint64_t(plan.ub), plan.workspace}) {
        *out++ = value;
    }
    return out;
}
}  // namespace

// For each of `count` shapes (queries, keys, width): tile and plan of the forward kernel with scores in half and in float, then of the backward one
// likewise, in one pass and in two; and of a 910A's two kernels.
extern "C" void tilings(const uint32_t* shapes, uint32_t count, uint64_t* out) {
    for (uint32_t i = 0; i < count; ++i, shapes += 3) {
        for (uint32_t score : {2, 4}) {
            const auto forward = attention::forward_tile(shapes[0], shapes[1], shapes[2], score);
            *out++ = forward.span;
            *out++ = forward.strip;
            out = write(out, {forward.rows, forward.columns}, attention::forward_plan(shapes[2], forward, score));
        }
        for (uint32_t score : {2, 4}) {
            for (bool deterministic : {false, true}) {
                const auto backward = attention::backward_tile(shapes[0], shapes[1], shapes[2], score, deterministic);
                out = write(out, backward, attention::backward_plan(shapes[2], backward.rows, backward.columns, 2, score,
                                                                    !deterministic));
            }
        }
        const auto forward = attention::coupled_forward_tile(shapes[0], shapes[1], shapes[2]);
        out = write(out, forward, attention::coupled_forward_plan(shapes[2], forward.rows, forward.columns));
        const auto backward = attention::coupled_backward_tile(shapes[0], shapes[1], shapes[2]);
        out = write(out, backward, attention::coupled_backward_plan(shapes[2], backward.rows, backward.columns));
    }
}
