// What the operators' host sides use of CANN's register/op_def_registry.h, and no more: enough to compile them and to
// ask them. Signatures as documented (asc-devkit, Utils API); AddConfig returns nothing there either.
#ifndef SIMULATOR_OP_DEF_REGISTRY_H
#define SIMULATOR_OP_DEF_REGISTRY_H

#include <any>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <map>
#include <set>
#include <string>
#include <vector>

namespace ge {
using graphStatus = uint32_t;
constexpr graphStatus GRAPH_SUCCESS = 0, GRAPH_FAILED = 0xFFFFFFFF, GRAPH_PARAM_INVALID = 50331649;
enum DataType { DT_FLOAT = 0, DT_FLOAT16 = 1, DT_BF16 = 27 };
enum Format { FORMAT_ND = 2 };
}  // namespace ge

namespace gert {
class Shape {
public:
    Shape() = default;
    Shape(const std::initializer_list<int64_t>& dims) : dims_(dims) {}
    explicit Shape(std::vector<int64_t> dims) : dims_(std::move(dims)) {}
    size_t GetDimNum() const { return dims_.size(); }
    int64_t GetDim(size_t i) const { return dims_.at(i); }
    int64_t GetShapeSize() const {
        int64_t size = 1;
        for (int64_t dim : dims_) {
            size *= dim;
        }
        return size;
    }

private:
    std::vector<int64_t> dims_;
};

struct StorageShape {
    Shape origin;
    const Shape& GetOriginShape() const { return origin; }
};

class RuntimeAttrs {
public:
    template <typename T>
    const T* GetAttrPointer(size_t i) const {
        return std::any_cast<T>(&values.at(i));
    }
    std::vector<std::any> values;
};

struct Context {
    std::vector<StorageShape> inputs;
    std::vector<Shape> outputs;
    RuntimeAttrs attributes;
    const RuntimeAttrs* GetAttrs() const { return &attributes; }
};

class TilingContext : public Context {
public:
    const StorageShape* GetInputShape(size_t i) const { return i < inputs.size() ? &inputs[i] : nullptr; }
    void* GetPlatformInfo() const { return nullptr; }
    template <typename T>
    T* GetTilingData() {
        return static_cast<T*>(data);
    }
    ge::graphStatus SetBlockDim(uint32_t blocks) {
        block_dim = blocks;
        return ge::GRAPH_SUCCESS;
    }
    size_t* GetWorkspaceSizes(size_t) { return &workspace; }
    void* data = nullptr;
    uint32_t block_dim = 0;
    size_t workspace = 0;
};

class InferShapeContext : public Context {
public:
    const Shape* GetInputShape(size_t i) const { return i < inputs.size() ? &inputs[i].origin : nullptr; }
    Shape* GetOutputShape(size_t i) { return &outputs.at(i); }
};

class InferDataTypeContext {
public:
    ge::DataType GetInputDataType(size_t i) const { return inputs.at(i); }
    ge::graphStatus SetOutputDataType(size_t i, ge::DataType type) {
        outputs[i] = type;
        return ge::GRAPH_SUCCESS;
    }
    std::vector<ge::DataType> inputs;
    std::map<size_t, ge::DataType> outputs;
};
}  // namespace gert

namespace ops {
enum Option { IGNORE = 0, OPTIONAL = 1, REQUIRED = 2, DYNAMIC = 3 };

struct OpParamDef {
    OpParamDef& ParamType(Option) { return *this; }
    OpParamDef& DataType(std::vector<ge::DataType> given) {
        types = std::move(given);
        return *this;
    }
    OpParamDef& FormatList(std::vector<ge::Format>) { return *this; }
    OpParamDef& AutoContiguous() {
        contiguous = true;
        return *this;
    }
    std::vector<ge::DataType> types;
    bool contiguous = false;
};

struct OpAttrDef {
    OpAttrDef& AttrType(Option) { return *this; }
    OpAttrDef& Int() { return *this; }
    OpAttrDef& Float() { return *this; }
    OpAttrDef& Bool() { return *this; }
};

class OpAICoreConfig {
public:
    OpParamDef& Input(const char* name) { return inputs[name]; }
    OpParamDef& Output(const char* name) { return outputs[name]; }
    OpAICoreConfig& DynamicCompileStaticFlag(bool) { return set("DynamicCompileStatic"); }
    OpAICoreConfig& DynamicFormatFlag(bool) { return set("DynamicFormat"); }
    OpAICoreConfig& DynamicRankSupportFlag(bool) { return set("DynamicRankSupport"); }
    OpAICoreConfig& DynamicShapeSupportFlag(bool) { return set("DynamicShapeSupport"); }
    OpAICoreConfig& NeedCheckSupportFlag(bool) { return set("NeedCheckSupport"); }
    OpAICoreConfig& PrecisionReduceFlag(bool) { return set("PrecisionReduce"); }
    std::map<std::string, OpParamDef> inputs, outputs;
    std::set<std::string> flags;  // that are set; a config of one's own begins without any

private:
    OpAICoreConfig& set(const char* flag) {
        flags.insert(flag);
        return *this;
    }
};

struct OpAICoreDef {
    OpAICoreDef& SetTiling(ge::graphStatus (*function)(gert::TilingContext*)) {
        tiling = function;
        return *this;
    }
    void AddConfig(const char* chip) { chips.push_back(chip); }
    void AddConfig(const char* chip, OpAICoreConfig& config) {
        chips.push_back(chip);
        of_chip[chip] = config;
    }
    std::map<std::string, OpAICoreConfig> of_chip;
    ge::graphStatus (*tiling)(gert::TilingContext*) = nullptr;
    std::vector<std::string> chips;
};

class OpDef {
public:
    explicit OpDef(const char* name) : name_(name) {}
    OpParamDef& Input(const char* name) { return inputs[name]; }
    OpParamDef& Output(const char* name) { return outputs[name]; }
    OpAttrDef& Attr(const char* name) { return attributes[name]; }
    OpDef& SetInferShape(ge::graphStatus (*function)(gert::InferShapeContext*)) {
        shape = function;
        return *this;
    }
    OpDef& SetInferDataType(ge::graphStatus (*function)(gert::InferDataTypeContext*)) {
        type = function;
        return *this;
    }
    OpAICoreDef& AICore() { return core; }

    std::map<std::string, OpParamDef> inputs, outputs;
    std::map<std::string, OpAttrDef> attributes;
    ge::graphStatus (*shape)(gert::InferShapeContext*) = nullptr;
    ge::graphStatus (*type)(gert::InferDataTypeContext*) = nullptr;
    OpAICoreDef core;

private:
    std::string name_;
};

inline std::map<std::string, OpDef*>& registered() {
    static std::map<std::string, OpDef*> all;
    return all;
}
}  // namespace ops

#define OP_ADD(NAME) static const bool NAME##_added = (registered()[#NAME] = new NAME(#NAME)) != nullptr

#endif
