// Convolution and dense layers, forward and gradient, over oneDNN (3.2, PyPI onednn-cpu-gomp).
//
// Tensors are plain float32 (N, C, H, W) or (rows, C) outside; inside, every primitive works in the layout it likes best
// and, where the last setting is 1, in bfloat16 with float32 accumulation. Primitives are made once per shape.

#include "operator.hpp"

#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <vector>

namespace {

using dnnl::memory;
using Tag = memory::format_tag;
using Dims = memory::dims;

constexpr auto f32 = memory::data_type::f32;

// MindSpore may run two operators at once; the buffers below are shared, so they take turns.
std::mutex turn;

// Buffers for reordered tensors, reused by every call: number i grows to the largest that was asked for.
void *scratch(size_t slot, size_t bytes) {
    struct Buffer {
        void *data = nullptr;
        size_t bytes = 0;
    };
    static std::vector<Buffer> buffers(8);
    Buffer &buffer = buffers.at(slot);
    if (buffer.bytes < bytes) {
        std::free(buffer.data);
        buffer.data = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
        if (!buffer.data) throw std::bad_alloc();
        buffer.bytes = bytes;
    }
    return buffer.data;
}

// One tensor of a primitive: its layout outside and inside, and the way from one to the other where they differ.
class Port {
public:
    Port(const memory::desc &outside, const memory::desc &inside, size_t slot, bool output)
        : outside_(outside), inside_(inside), slot_(slot) {
        if (outside == inside) return;
        const auto &engine = machine().engine;
        const auto &from = output ? inside : outside, &to = output ? outside : inside;
        move_.emplace(dnnl::reorder::primitive_desc(engine, from, engine, to));
    }
    memory enter(void *data) const {
        memory outer(outside_, machine().engine, data);
        if (!move_) return outer;
        memory inner = buffer();
        dnnl::reorder(*move_).execute(machine().stream, outer, inner);
        return inner;
    }
    memory target(void *data) const { return move_ ? buffer() : memory(outside_, machine().engine, data); }
    void leave(memory &inner, void *data) const {
        if (!move_) return;
        memory outer(outside_, machine().engine, data);
        dnnl::reorder(*move_).execute(machine().stream, inner, outer);
    }

private:
    memory buffer() const { return memory(inside_, machine().engine, scratch(slot_, inside_.get_size())); }
    memory::desc outside_, inside_;
    size_t slot_;
    std::optional<dnnl::reorder> move_;
};

memory::desc any(const Dims &dims, memory::data_type type) { return memory::desc(dims, type, Tag::any); }

// The shapes of a layer y = w * x + b. A convolution has strides and padding {top, left} and {bottom, right}.
struct Layer {
    Dims x, w, y, strides, low, high;
    bool bias;
    memory::data_type inner;
    bool convolution() const { return x.size() == 4; }
    Tag tag_x() const { return convolution() ? Tag::nchw : Tag::nc; }
    Tag tag_w() const { return convolution() ? Tag::oihw : Tag::oi; }
    std::vector<int64_t> key(int kind) const {
        std::vector<int64_t> all{kind, bias, (int64_t)inner};
        for (const auto *dims : {&x, &w, &y, &strides, &low, &high}) all.insert(all.end(), dims->begin(), dims->end());
        return all;
    }
    memory::desc bias_desc() const { return bias ? memory::desc({w[0]}, f32, Tag::a) : memory::desc(); }
};

// What a primitive works in is ours: oneDNN's own belongs to the thread that made the primitive, and MindSpore runs an
// operator on any of its threads.
dnnl::primitive_attr attributes() {
    dnnl::primitive_attr found;
    found.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    return found;
}
constexpr size_t WORK = 6;  // its slot; the ports' come before

memory work(const memory::desc &desc) { return memory(desc, machine().engine, scratch(WORK, desc.get_size())); }

dnnl::convolution_forward::primitive_desc conv_forward(const Layer &l, memory::data_type out) {
    const auto t = l.inner;
    return {machine().engine, dnnl::prop_kind::forward_training, dnnl::algorithm::convolution_direct, any(l.x, t),
            any(l.w, t), l.bias_desc(), any(l.y, out), l.strides, l.low, l.high, attributes()};
}

dnnl::inner_product_forward::primitive_desc dense_forward(const Layer &l, memory::data_type out) {
    const auto t = l.inner;
    return {machine().engine, dnnl::prop_kind::forward_training, any(l.x, t), any(l.w, t), l.bias_desc(),
            any(l.y, out), attributes()};
}

struct Forward {
    dnnl::primitive primitive;
    memory::desc within;
    std::optional<Port> x, w, y;
    template <class Desc> void build(const Layer &l, const Desc &pd) {
        primitive = dnnl::primitive(pd);
        within = pd.scratchpad_desc();
        x.emplace(memory::desc(l.x, f32, l.tag_x()), pd.src_desc(), 0, false);
        w.emplace(memory::desc(l.w, f32, l.tag_w()), pd.weights_desc(), 1, false);
        y.emplace(memory::desc(l.y, f32, l.tag_x()), pd.dst_desc(), 2, true);
    }
    explicit Forward(const Layer &l) {
        if (l.convolution()) {
            build(l, conv_forward(l, f32));
        } else {
            build(l, dense_forward(l, f32));
        }
    }
    void run(const Layer &l, void *px, void *pw, void *pb, void *py) const {
        auto &m = machine();
        memory mx = x->enter(px), mw = w->enter(pw), my = y->target(py);
        std::unordered_map<int, memory> args{
            {DNNL_ARG_SRC, mx}, {DNNL_ARG_WEIGHTS, mw}, {DNNL_ARG_DST, my}, {DNNL_ARG_SCRATCHPAD, work(within)}};
        if (l.bias) args.emplace(DNNL_ARG_BIAS, memory(l.bias_desc(), m.engine, pb));
        primitive.execute(m.stream, args);
        y->leave(my, py);
    }
};

struct Backward {
    dnnl::primitive data, weights;
    memory::desc within_data, within_weights;
    std::optional<Port> w, dy_data, dx, x, dy_weights, dw;
    template <class DataDesc, class WeightsDesc>
    void build(const Layer &l, const DataDesc &d, const WeightsDesc &p) {
        const memory::desc outer_x(l.x, f32, l.tag_x()), outer_w(l.w, f32, l.tag_w()), outer_y(l.y, f32, l.tag_x());
        data = dnnl::primitive(d);
        weights = dnnl::primitive(p);
        within_data = d.scratchpad_desc();
        within_weights = p.scratchpad_desc();
        w.emplace(outer_w, d.weights_desc(), 0, false);
        dy_data.emplace(outer_y, d.diff_dst_desc(), 1, false);
        dx.emplace(outer_x, d.diff_src_desc(), 2, true);
        x.emplace(outer_x, p.src_desc(), 3, false);
        // The same buffer again where both primitives want the gradient in the same layout.
        same_dy = d.diff_dst_desc() == p.diff_dst_desc();
        dy_weights.emplace(outer_y, p.diff_dst_desc(), same_dy ? 1 : 4, false);
        dw.emplace(outer_w, p.diff_weights_desc(), 5, true);
    }
    bool same_dy = false;
    explicit Backward(const Layer &l) {
        const auto &engine = machine().engine;
        const auto t = l.inner;
        if (l.convolution()) {
            const auto hint = conv_forward(l, t);
            const auto direct = dnnl::algorithm::convolution_direct;
            build(l,
                  dnnl::convolution_backward_data::primitive_desc(engine, direct, any(l.x, f32), any(l.w, t),
                                                                  any(l.y, t), l.strides, l.low, l.high, hint,
                                                                  attributes()),
                  dnnl::convolution_backward_weights::primitive_desc(engine, direct, any(l.x, t), any(l.w, f32),
                                                                     l.bias_desc(), any(l.y, t), l.strides, l.low,
                                                                     l.high, hint, attributes()));
        } else {
            const auto hint = dense_forward(l, t);
            build(l,
                  dnnl::inner_product_backward_data::primitive_desc(engine, any(l.x, f32), any(l.w, t), any(l.y, t),
                                                                    hint, attributes()),
                  dnnl::inner_product_backward_weights::primitive_desc(engine, any(l.x, t), any(l.w, f32),
                                                                       l.bias_desc(), any(l.y, t), hint,
                                                                       attributes()));
        }
    }
    void run(const Layer &l, void *px, void *pw, void *pdy, void *pdx, void *pdw, void *pdb) const {
        auto &m = machine();
        memory mdy = dy_data->enter(pdy);
        memory mw = w->enter(pw), mdx = dx->target(pdx);
        data.execute(m.stream, {{DNNL_ARG_WEIGHTS, mw},
                                {DNNL_ARG_DIFF_DST, mdy},
                                {DNNL_ARG_DIFF_SRC, mdx},
                                {DNNL_ARG_SCRATCHPAD, work(within_data)}});
        dx->leave(mdx, pdx);
        memory mx = x->enter(px), mdw = dw->target(pdw);
        memory mdy2 = same_dy ? mdy : dy_weights->enter(pdy);
        std::unordered_map<int, memory> args{
            {DNNL_ARG_SRC, mx},
            {DNNL_ARG_DIFF_DST, mdy2},
            {DNNL_ARG_DIFF_WEIGHTS, mdw},
            {DNNL_ARG_SCRATCHPAD, work(within_weights)}};
        if (l.bias) args.emplace(DNNL_ARG_DIFF_BIAS, memory(l.bias_desc(), m.engine, pdb));
        weights.execute(m.stream, args);
        dw->leave(mdw, pdw);
    }
};

template <class Plan> const Plan &plan(const Layer &layer, int kind) {
    static std::map<std::vector<int64_t>, std::unique_ptr<Plan>> plans;
    auto &found = plans[layer.key(kind)];
    if (!found) found = std::make_unique<Plan>(layer);
    return *found;
}

Dims dims_of(int ndim, const int64_t *shape) { return Dims(shape, shape + ndim); }

// (…, C) as (rows, C).
Dims rows_of(int ndim, const int64_t *shape) {
    int64_t rows = 1;
    for (int i = 0; i + 1 < ndim; ++i) rows *= shape[i];
    return {rows, shape[ndim - 1]};
}

memory::data_type inner_type(float bf16) { return bf16 != 0 ? memory::data_type::bf16 : f32; }

// settings: {stride, padding before, padding after, 1 for bfloat16}; the geometry is the same for both axes.
Layer convolution(const int *ndims, int64_t **shapes, int x, int w, int y, const void *settings) {
    const auto *s = static_cast<const float *>(settings);
    const int64_t stride = (int64_t)s[0], before = (int64_t)s[1], after = (int64_t)s[2];
    return {dims_of(ndims[x], shapes[x]), dims_of(ndims[w], shapes[w]), dims_of(ndims[y], shapes[y]),
            {stride, stride}, {before, before}, {after, after}, true, inner_type(s[3])};
}

// settings: {1 for bfloat16}.
Layer dense(const int *ndims, int64_t **shapes, int x, int w, int y, bool bias, const void *settings) {
    return {rows_of(ndims[x], shapes[x]), dims_of(ndims[w], shapes[w]), rows_of(ndims[y], shapes[y]), {}, {}, {},
            bias, inner_type(*static_cast<const float *>(settings))};
}

template <class Work> int guarded(const char *name, Work work) {
    const std::lock_guard<std::mutex> lock(turn);
    try {
        work();
        machine().stream.wait();
        return 0;
    } catch (const std::exception &error) {
        std::fprintf(stderr, "mindpangu: CPU operator %s: %s\n", name, error.what());
        return 1;
    }
}

}  // namespace

// x (N, C, H, W), w (O, C, k, k), b (O,), settings (4,) -> y (N, O, H', W').
AOT(Conv2D) {
    (void)nparam;
    return guarded("Conv2D", [&] {
        const Layer layer = convolution(ndims, shapes, 0, 1, 4, params[3]);
        plan<Forward>(layer, 0).run(layer, params[0], params[1], params[2], params[4]);
    });
}

// x, w, settings, dy -> dx, dw, db.
AOT(Conv2DGrad) {
    (void)nparam;
    return guarded("Conv2DGrad", [&] {
        const Layer layer = convolution(ndims, shapes, 0, 1, 3, params[2]);
        plan<Backward>(layer, 1).run(layer, params[0], params[1], params[3], params[4], params[5], params[6]);
    });
}

// x (…, C), w (O, C), settings (1,) -> y (…, O); or x, w, b (O,), settings -> y.
AOT(Dense) {
    return guarded("Dense", [&] {
        const int y = nparam - 1;
        const bool bias = nparam == 5;
        const Layer layer = dense(ndims, shapes, 0, 1, y, bias, params[y - 1]);
        plan<Forward>(layer, 2).run(layer, params[0], params[1], bias ? params[2] : nullptr, params[y]);
    });
}

// x, w, settings, dy -> dx, dw; or the same -> dx, dw, db.
AOT(DenseGrad) {
    return guarded("DenseGrad", [&] {
        const bool bias = nparam == 7;
        const Layer layer = dense(ndims, shapes, 0, 1, 3, bias, params[2]);
        plan<Backward>(layer, 3).run(layer, params[0], params[1], params[3], params[4], params[5],
                                     bias ? params[6] : nullptr);
    });
}
