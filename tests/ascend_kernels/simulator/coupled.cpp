// Both kernels of the 910A in the simulator, for ctypes.
#include "mindpangu_flash_attention.cpp"
#include "mindpangu_flash_attention_grad.cpp"

namespace {
uint8_t* bytes(const void* address) { return static_cast<uint8_t*>(const_cast<void*>(address)); }

struct Sizes {
    explicit Sizes(const AttentionTiling& t)
        : queries(size_t(t.batch) * t.queries * t.heads * t.width * 2), keys(size_t(t.batch) * t.keys * t.heads * t.width * 2),
          lines(size_t(t.batch) * t.heads * t.queries * 4) {}
    size_t queries, keys, lines;  // bytes
};
}  // namespace

// Both return 0, or write what went wrong to `error` (of `room` bytes) and return 1.
extern "C" int simulate_forward(void* q, void* k, void* v, void* o, void* lse, const AttentionTiling* tiling,
                                uint32_t blocks, uint32_t seed, char* error, uint32_t room) {
    sim::Device device;
    const Sizes size(*tiling);
    device.add("q", q, size.queries, sim::Memory::INPUT);
    device.add("k", k, size.keys, sim::Memory::INPUT);
    device.add("v", v, size.keys, sim::Memory::INPUT);
    device.add("o", o, size.queries, sim::Memory::OUTPUT);
    device.add("lse", lse, size.lines, sim::Memory::OUTPUT);
    const std::string wrong = sim::run(device, blocks, seed, [&] {
        mindpangu_flash_attention(bytes(q), bytes(k), bytes(v), bytes(o), bytes(lse), nullptr, bytes(tiling));
    });
    std::snprintf(error, room, "%s", wrong.c_str());
    return wrong.empty() ? 0 : 1;
}

extern "C" int simulate_backward(void* q, void* k, void* v, void* grad, void* lse, void* delta, void* dq, void* dk,
                                 void* dv, const AttentionTiling* tiling, uint32_t blocks, uint32_t seed, char* error,
                                 uint32_t room) {
    sim::Device device;
    const Sizes size(*tiling);
    device.add("q", q, size.queries, sim::Memory::INPUT);
    device.add("k", k, size.keys, sim::Memory::INPUT);
    device.add("v", v, size.keys, sim::Memory::INPUT);
    device.add("do", grad, size.queries, sim::Memory::INPUT);
    device.add("lse", lse, size.lines, sim::Memory::INPUT);
    device.add("delta", delta, size.lines, sim::Memory::INPUT);
    device.add("dq", dq, size.queries, sim::Memory::OUTPUT);
    device.add("dk", dk, size.keys, sim::Memory::OUTPUT);
    device.add("dv", dv, size.keys, sim::Memory::OUTPUT);
    const std::string wrong = sim::run(device, blocks, seed, [&] {
        mindpangu_flash_attention_grad(bytes(q), bytes(k), bytes(v), bytes(grad), bytes(lse), bytes(delta), bytes(dq),
                                       bytes(dk), bytes(dv), nullptr, bytes(tiling));
    });
    std::snprintf(error, room, "%s", wrong.c_str());
    return wrong.empty() ? 0 : 1;
}
