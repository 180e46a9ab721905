// The backward operator as CANN knows it: inputs, outputs, shapes, tiling. Never built with CANN.
#include "attention_host.h"

namespace optiling {
static ge::graphStatus BackwardTiling(gert::TilingContext* context) {
    AttentionTiling tiling{};
    const ge::graphStatus read = ReadShapes(context, tiling);
    if (read != ge::GRAPH_SUCCESS) {
        return read;
    }
    const bool* deterministic = context->GetAttrs()->GetAttrPointer<bool>(4);
    if (deterministic == nullptr) {
        return ge::GRAPH_FAILED;
    }
    if (tiling.causal && tiling.keys > tiling.queries) {
        return ge::GRAPH_PARAM_INVALID;  // keys that no query sees
    }
    if (Coupled(context)) {
        const attention::Tile tile = attention::coupled_backward_tile(tiling.queries, tiling.keys, tiling.width);
        const uint32_t step = attention::larger(attention::smaller(tile.rows, tile.columns), 1);
        const uint32_t tasks = Tasks(tiling, attention::larger(tiling.queries, tiling.keys), step);
        return CoupledTakes(tiling) ? Launch(context, tiling, tile, 0, tasks) : ge::GRAPH_PARAM_INVALID;
    }
    tiling.deterministic = *deterministic ? 1 : 0;
    const uint32_t score = tiling.half_scores ? 2 : 4;
    const attention::Tile tile =
        attention::backward_tile(tiling.queries, tiling.keys, tiling.width, score, *deterministic);
    const uint64_t workspace =
        attention::backward_plan(tiling.width, tile.rows, tile.columns, 2, score, !*deterministic).workspace;
    const uint32_t length = *deterministic ? attention::larger(tiling.queries, tiling.keys) : tiling.keys;
    // In one pass dq is added up in float behind the cores' own parts.
    const uint64_t sums = *deterministic ? 0 : 4 * uint64_t(tiling.batch) * tiling.queries * tiling.heads * tiling.width;
    return Launch(context, tiling, tile, workspace, Tasks(tiling, length, attention::larger(tile.rows, 1)), sums);
}
}  // namespace optiling

namespace ge {
static graphStatus BackwardShape(gert::InferShapeContext* context) {
    for (size_t i = 0; i < 3; ++i) {
        *context->GetOutputShape(i) = *context->GetInputShape(i);
    }
    return GRAPH_SUCCESS;
}

static graphStatus BackwardType(gert::InferDataTypeContext* context) {
    for (size_t i = 0; i < 3; ++i) {
        context->SetOutputDataType(i, context->GetInputDataType(i));
    }
    return GRAPH_SUCCESS;
}
}  // namespace ge

namespace ops {
class MindpanguFlashAttentionGrad : public OpDef {
public:
    explicit MindpanguFlashAttentionGrad(const char* name) : OpDef(name) {
        for (const char* input : {"q", "k", "v", "grad"}) {
            this->Input(input).ParamType(REQUIRED).DataType({ge::DT_FLOAT16, ge::DT_BF16}).FormatList({ge::FORMAT_ND}).AutoContiguous();
        }
        for (const char* input : {"lse", "delta"}) {
            this->Input(input).ParamType(REQUIRED).DataType({ge::DT_FLOAT, ge::DT_FLOAT}).FormatList({ge::FORMAT_ND}).AutoContiguous();
        }
        for (const char* output : {"dq", "dk", "dv"}) {
            this->Output(output).ParamType(REQUIRED).DataType({ge::DT_FLOAT16, ge::DT_BF16}).FormatList({ge::FORMAT_ND});
        }
        this->Attr("heads").AttrType(REQUIRED).Int();
        this->Attr("scale").AttrType(REQUIRED).Float();
        this->Attr("causal").AttrType(REQUIRED).Bool();
        this->Attr("half_scores").AttrType(REQUIRED).Bool();
        this->Attr("deterministic").AttrType(REQUIRED).Bool();
        this->SetInferShape(ge::BackwardShape).SetInferDataType(ge::BackwardType);
        this->AICore().SetTiling(optiling::BackwardTiling);
        for (const char* chip : {"ascend910b", "ascend910_93"}) {
            this->AICore().AddConfig(chip);
        }
        OpAICoreConfig coupled = CoupledConfig();  // no bfloat16
        for (const char* input : {"q", "k", "v", "grad"}) {
            coupled.Input(input).ParamType(REQUIRED).DataType({ge::DT_FLOAT16}).FormatList({ge::FORMAT_ND}).AutoContiguous();
        }
        for (const char* input : {"lse", "delta"}) {
            coupled.Input(input).ParamType(REQUIRED).DataType({ge::DT_FLOAT}).FormatList({ge::FORMAT_ND}).AutoContiguous();
        }
        for (const char* output : {"dq", "dk", "dv"}) {
            coupled.Output(output).ParamType(REQUIRED).DataType({ge::DT_FLOAT16}).FormatList({ge::FORMAT_ND});
        }
        this->AICore().AddConfig("ascend910", coupled);
    }
};
OP_ADD(MindpanguFlashAttentionGrad);
}  // namespace ops
