// The backward kernel in the simulator, for ctypes.
#include "mindpangu_flash_attention_grad.cpp"

// Returns 0, or writes what went wrong to `error` (of `room` bytes) and returns 1.
extern "C" int simulate(void* q, void* k, void* v, void* grad, void* lse, void* delta, void* dq, void* dk, void* dv,
                        const AttentionTiling* tiling, uint32_t blocks, uint32_t seed, char* error, uint32_t room) {
    sim::Device device;
    const size_t width = size_t(tiling->heads) * tiling->width * sizeof(DTYPE_Q);
    const size_t queries = size_t(tiling->batch) * tiling->queries, keys = size_t(tiling->batch) * tiling->keys;
    const size_t lines = queries * tiling->heads * sizeof(float);
    const bool adds = !tiling->deterministic;
    const size_t own = attention::backward_plan(tiling->width, tiling->rows, tiling->columns, 2,
                                                tiling->half_scores ? 2 : 4, adds).workspace;
    const size_t space = own * blocks + (adds ? queries * tiling->heads * tiling->width * sizeof(float) : 0);
    std::vector<uint8_t> workspace(space);
    device.add("q", q, queries * width, sim::Memory::INPUT);
    device.add("k", k, keys * width, sim::Memory::INPUT);
    device.add("v", v, keys * width, sim::Memory::INPUT);
    device.add("do", grad, queries * width, sim::Memory::INPUT);
    device.add("lse", lse, lines, sim::Memory::INPUT);
    device.add("delta", delta, lines, sim::Memory::INPUT);
    device.add("dq", dq, queries * width, sim::Memory::OUTPUT);
    device.add("dk", dk, keys * width, sim::Memory::OUTPUT);
    device.add("dv", dv, keys * width, sim::Memory::OUTPUT);
    device.add("workspace", workspace.data(), space, sim::Memory::WORKSPACE);
    auto* settings = reinterpret_cast<uint8_t*>(const_cast<AttentionTiling*>(tiling));
    const auto bytes = [](void* address) { return static_cast<uint8_t*>(address); };
    const std::string wrong = sim::run(device, blocks, seed, [&] {
        mindpangu_flash_attention_grad(bytes(q), bytes(k), bytes(v), bytes(grad), bytes(lse), bytes(delta), bytes(dq),
                                       bytes(dk), bytes(dv), workspace.data(), settings);
    });
    std::snprintf(error, room, "%s", wrong.c_str());
    return wrong.empty() ? 0 : 1;
}
