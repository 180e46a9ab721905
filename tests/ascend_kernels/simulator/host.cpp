// Both operators' host sides, for ctypes.
#include <algorithm>

#include "op_host/mindpangu_flash_attention.cpp"
#include "op_host/mindpangu_flash_attention_grad.cpp"

namespace {
ops::OpDef& operator_of(bool backward) {
    return *ops::registered().at(backward ? "MindpanguFlashAttentionGrad" : "MindpanguFlashAttention");
}

void fill(gert::Context& context, const int64_t* shapes, uint32_t inputs, int64_t heads, float scale) {
    for (uint32_t i = 0; i < inputs; ++i, shapes += 3) {
        context.inputs.push_back({gert::Shape{shapes[0], shapes[1], shapes[2]}});
    }
    context.attributes.values = {heads, scale, false, true, false};
}
}  // namespace

// Which chip the host is asked about from now on.
extern "C" void pretend(bool is_910a) {
    platform_ascendc::pretended = is_910a ? platform_ascendc::SocVersion::ASCEND910 : platform_ascendc::SocVersion::ASCEND910B;
}

// The status for q and k of these shapes; `tiling` and `launch` (cores, bytes of workspace) as the host sets them.
extern "C" uint32_t tile(bool backward, const int64_t* shapes, int64_t heads, AttentionTiling* tiling, uint64_t* launch) {
    gert::TilingContext context;
    fill(context, shapes, 2, heads, 0.5f);
    context.data = tiling;
    const uint32_t status = operator_of(backward).core.tiling(&context);
    launch[0] = context.block_dim;
    launch[1] = context.workspace;
    return status;
}

// The forward operator's output shapes, six numbers.
extern "C" uint32_t infer(const int64_t* shapes, int64_t heads, int64_t* out) {
    gert::InferShapeContext context;
    fill(context, shapes, 3, heads, 0.5f);
    context.outputs.resize(2);
    const uint32_t status = operator_of(false).shape(&context);
    for (const gert::Shape& shape : context.outputs) {
        for (size_t i = 0; i < shape.GetDimNum(); ++i) {
            *out++ = shape.GetDim(i);
        }
    }
    return status;
}

// Whether every input is made contiguous, and how many chips it is for.
extern "C" uint32_t described(bool backward) {
    const ops::OpDef& definition = operator_of(backward);
    const auto wrong = [](const auto& inputs) {
        return std::any_of(inputs.begin(), inputs.end(), [](const auto& one) { return !one.second.contiguous; });
    };
    const ops::OpAICoreConfig& coupled = definition.core.of_chip.at("ascend910");
    if (wrong(definition.inputs) || wrong(coupled.inputs) || coupled.inputs.size() != definition.inputs.size() ||
        coupled.outputs.size() != definition.outputs.size() || coupled.flags.size() != 6) {
        return 0;
    }
    return static_cast<uint32_t>(definition.core.chips.size());
}
