// The backward operator as CANN knows it: inputs, outputs, shapes, tiling. Never built with CANN.
#include "attention_host.h"

namespace optiling {
static ge::graphStatus BackwardTiling(gert::TilingContext* context) {
    AttentionTiling tiling{};
    const ge::graphStatus read = ReadShapes(context, tiling);
    if (read != ge::GRAPH_SUCCESS) {
        return read;
    }
    const attention::Tile tile = attention::backward_tile(tiling.queries, tiling.keys, tiling.width);
    const uint64_t workspace = attention::backward_plan(tiling.width, tile.rows, tile.columns, 2).workspace;
    const uint32_t longer = attention::larger(tiling.queries, tiling.keys);
    return Launch(context, tiling, tile, workspace, Tasks(tiling, longer, attention::larger(tile.rows, 1)));
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
        this->SetInferShape(ge::BackwardShape).SetInferDataType(ge::BackwardType);
        this->AICore().SetTiling(optiling::BackwardTiling);
        for (const char* chip : {"ascend910b", "ascend910_93"}) {
            this->AICore().AddConfig(chip);
        }
    }
};
OP_ADD(MindpanguFlashAttentionGrad);
}  // namespace ops
