// The forward kernel in the simulator, for ctypes.
#include "mindpangu_flash_attention.cpp"

// Returns 0, or writes what went wrong to `error` (of `room` bytes) and returns 1.
extern "C" int simulate(void* q, void* k, void* v, void* o, float* lse, const AttentionTiling* tiling, uint32_t blocks,
                        uint32_t seed, char* error, uint32_t room) {
    sim::Device device;
    const size_t width = size_t(tiling->heads) * tiling->width, item = sizeof(DTYPE_Q);
    const size_t queries = size_t(tiling->batch) * tiling->queries, keys = size_t(tiling->batch) * tiling->keys;
    const size_t space = attention::forward_plan(tiling->width, {tiling->rows, tiling->columns, tiling->span, tiling->strip},
                                                 tiling->half_scores ? 2 : 4).workspace * blocks;
    std::vector<uint8_t> workspace(space);
    device.add("q", q, queries * width * item, sim::Memory::INPUT);
    device.add("k", k, keys * width * item, sim::Memory::INPUT);
    device.add("v", v, keys * width * item, sim::Memory::INPUT);
    device.add("o", o, queries * width * item, sim::Memory::OUTPUT);
    device.add("lse", lse, queries * tiling->heads * sizeof(float), sim::Memory::OUTPUT);
    device.add("workspace", workspace.data(), space, sim::Memory::WORKSPACE);
    auto* settings = reinterpret_cast<uint8_t*>(const_cast<AttentionTiling*>(tiling));
    const std::string wrong = sim::run(device, blocks, seed, [&] {
        mindpangu_flash_attention(static_cast<uint8_t*>(q), static_cast<uint8_t*>(k), static_cast<uint8_t*>(v),
                                  static_cast<uint8_t*>(o), reinterpret_cast<uint8_t*>(lse), workspace.data(), settings);
    });
    std::snprintf(error, room, "%s", wrong.c_str());
    return wrong.empty() ? 0 : 1;
}
