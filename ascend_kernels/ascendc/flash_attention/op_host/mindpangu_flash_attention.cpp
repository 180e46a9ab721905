// The forward operator as CANN knows it: inputs, outputs, shapes, tiling. Never built with CANN.
#include "attention_host.h"

namespace optiling {
static ge::graphStatus ForwardTiling(gert::TilingContext* context) {
    AttentionTiling tiling{};
    const ge::graphStatus read = ReadShapes(context, tiling);
    if (read != ge::GRAPH_SUCCESS) {
        return read;
    }
    if (Coupled(context)) {
        const attention::Tile tile = attention::coupled_forward_tile(tiling.queries, tiling.keys, tiling.width);
        const uint32_t tasks = Tasks(tiling, tiling.queries, attention::larger(tile.rows, 1));
        return CoupledTakes(tiling) ? Launch(context, tiling, tile, 0, tasks) : ge::GRAPH_PARAM_INVALID;
    }
    const uint32_t score = tiling.half_scores ? 2 : 4;
    const attention::ForwardTile tile = attention::forward_tile(tiling.queries, tiling.keys, tiling.width, score);
    const uint64_t workspace = attention::forward_plan(tiling.width, tile, score).workspace;
    tiling.span = tile.span;
    tiling.strip = tile.strip;
    return Launch(context, tiling, {tile.rows, tile.columns}, workspace, Tasks(tiling, tiling.queries, attention::larger(tile.rows, 1)));
}
}  // namespace optiling

namespace ge {
static graphStatus ForwardShape(gert::InferShapeContext* context) {
    const gert::Shape* q = context->GetInputShape(0);
    const int64_t* heads = context->GetAttrs()->GetAttrPointer<int64_t>(0);
    *context->GetOutputShape(0) = *q;
    *context->GetOutputShape(1) = gert::Shape({q->GetDim(0), *heads, q->GetDim(1)});
    return GRAPH_SUCCESS;
}

static graphStatus ForwardType(gert::InferDataTypeContext* context) {
    context->SetOutputDataType(0, context->GetInputDataType(0));
    context->SetOutputDataType(1, DT_FLOAT);
    return GRAPH_SUCCESS;
}
}  // namespace ge

namespace ops {
class MindpanguFlashAttention : public OpDef {
public:
    explicit MindpanguFlashAttention(const char* name) : OpDef(name) {
        for (const char* input : {"q", "k", "v"}) {
            this->Input(input).ParamType(REQUIRED).DataType({ge::DT_FLOAT16, ge::DT_BF16}).FormatList({ge::FORMAT_ND}).AutoContiguous();
        }
        this->Output("o").ParamType(REQUIRED).DataType({ge::DT_FLOAT16, ge::DT_BF16}).FormatList({ge::FORMAT_ND});
        this->Output("lse").ParamType(REQUIRED).DataType({ge::DT_FLOAT, ge::DT_FLOAT}).FormatList({ge::FORMAT_ND});
        this->Attr("heads").AttrType(REQUIRED).Int();
        this->Attr("scale").AttrType(REQUIRED).Float();
        this->Attr("causal").AttrType(REQUIRED).Bool();
        this->Attr("half_scores").AttrType(REQUIRED).Bool();
        this->SetInferShape(ge::ForwardShape).SetInferDataType(ge::ForwardType);
        this->AICore().SetTiling(optiling::ForwardTiling);
        for (const char* chip : {"ascend910b", "ascend910_93"}) {
            this->AICore().AddConfig(chip);
        }
        OpAICoreConfig coupled = CoupledConfig();  // no bfloat16
        for (const char* input : {"q", "k", "v"}) {
            coupled.Input(input).ParamType(REQUIRED).DataType({ge::DT_FLOAT16}).FormatList({ge::FORMAT_ND}).AutoContiguous();
        }
        coupled.Output("o").ParamType(REQUIRED).DataType({ge::DT_FLOAT16}).FormatList({ge::FORMAT_ND});
        coupled.Output("lse").ParamType(REQUIRED).DataType({ge::DT_FLOAT}).FormatList({ge::FORMAT_ND});
        this->AICore().AddConfig("ascend910", coupled);
    }
};
OP_ADD(MindpanguFlashAttention);
}  // namespace ops
