// What the two operators' host sides share: reading shapes, writing the tiling.
#ifndef MINDPANGU_ATTENTION_HOST_H
#define MINDPANGU_ATTENTION_HOST_H

#include "../op_kernel/attention_tiling.h"
#include "register/op_def_registry.h"
#include "tiling/platform/platform_ascendc.h"

namespace optiling {

// Inputs 0 and 1 of both operators are q (N, S, H·D) and k (N, T, H·D); attributes: heads, scale, causal,
// half_scores.
inline ge::graphStatus ReadShapes(gert::TilingContext* context, AttentionTiling& tiling) {
    const gert::StorageShape* q = context->GetInputShape(0);
    const gert::StorageShape* k = context->GetInputShape(1);
    const gert::RuntimeAttrs* attrs = context->GetAttrs();
    if (q == nullptr || k == nullptr || attrs == nullptr) {
        return ge::GRAPH_FAILED;
    }
    const gert::Shape &queries = q->GetOriginShape(), &keys = k->GetOriginShape();
    const int64_t* heads = attrs->GetAttrPointer<int64_t>(0);
    const float* scale = attrs->GetAttrPointer<float>(1);
    const bool *causal = attrs->GetAttrPointer<bool>(2), *half_scores = attrs->GetAttrPointer<bool>(3);
    if (heads == nullptr || scale == nullptr || causal == nullptr || half_scores == nullptr || queries.GetDimNum() != 3 || keys.GetDimNum() != 3 ||
        *heads < 1 || queries.GetDim(2) % *heads != 0 || keys.GetDim(2) != queries.GetDim(2) ||
        queries.GetShapeSize() < 1 || keys.GetShapeSize() < 1) {
        return ge::GRAPH_PARAM_INVALID;  // nothing to do would start no core, which CANN refuses with less to go on
    }
    tiling.batch = queries.GetDim(0);
    tiling.queries = queries.GetDim(1);
    tiling.keys = keys.GetDim(1);
    tiling.heads = *heads;
    tiling.width = queries.GetDim(2) / *heads;
    tiling.scale = *scale;
    tiling.causal = *causal ? 1 : 0;
    tiling.half_scores = *half_scores ? 1 : 0;
    return ge::GRAPH_SUCCESS;
}

// Whether the chip is a 910A, whose kernels take multiples of 16 channels a head and of 16 queries.
inline bool Coupled(gert::TilingContext* context) {
    const auto platform = platform_ascendc::PlatformAscendC(context->GetPlatformInfo());
    return platform.GetSocVersion() == platform_ascendc::SocVersion::ASCEND910;
}

inline bool CoupledTakes(const AttentionTiling& tiling) {
    return tiling.width % attention::FRACTAL == 0 && tiling.queries % attention::FRACTAL == 0;
}

// Takes the tile, gives each cube core its workspace and all of them `shared` bytes, and starts as many of them as have
// work, two vector cores each, or as many coupled cores.
inline ge::graphStatus Launch(gert::TilingContext* context, AttentionTiling tiling, const attention::Tile& tile,
                              uint64_t workspace, uint32_t tasks, uint64_t shared = 0) {
    if (tile.size() == 0) {
        return ge::GRAPH_PARAM_INVALID;  // heads too wide for L0
    }
    const auto platform = platform_ascendc::PlatformAscendC(context->GetPlatformInfo());
    const uint32_t cores = attention::smaller(platform.GetCoreNumAic(), tasks);
    tiling.rows = tile.rows;
    tiling.columns = tile.columns;
    *context->GetTilingData<AttentionTiling>() = tiling;
    context->SetBlockDim(cores);
    context->GetWorkspaceSizes(1)[0] = platform.GetLibApiWorkSpaceSize() + cores * workspace + shared;
    return ge::GRAPH_SUCCESS;
}

inline uint32_t Tasks(const AttentionTiling& tiling, uint32_t length, uint32_t rows) {
    return tiling.batch * tiling.heads * ((length + rows - 1) / rows);
}

}  // namespace optiling

namespace ops {

// What AddConfig(chip) alone sets, and a config of one's own leaves open: without it no binary is built.
inline OpAICoreConfig CoupledConfig() {
    OpAICoreConfig config;
    config.DynamicCompileStaticFlag(true)
        .DynamicFormatFlag(true)
        .DynamicRankSupportFlag(true)
        .DynamicShapeSupportFlag(true)
        .NeedCheckSupportFlag(false)
        .PrecisionReduceFlag(true);
    return config;
}

}  // namespace ops

#endif
