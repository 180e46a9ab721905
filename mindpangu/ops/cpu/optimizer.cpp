// The optimizers: AdamW and Muon, each for a list of parameters at once, in place.

#include "operator.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <memory>
#include <tuple>
#include <vector>

namespace {

using dnnl::memory;

// The norm of all tensors together.
float norm_of(void **tensors, const std::vector<int64_t> &sizes) {
    std::vector<double> squares(sizes.size());
#pragma omp parallel for schedule(dynamic)
    for (size_t i = 0; i < sizes.size(); ++i) {
        const float *g = f(tensors[i]);
        for (int64_t start = 0; start < sizes[i]; start += 4096) {
            float part = 0;
            const int64_t end = std::min(sizes[i], start + 4096);
#pragma omp simd reduction(+ : part)
            for (int64_t j = start; j < end; ++j) part += g[j] * g[j];
            squares[i] += part;
        }
    }
    double total = 0;
    for (double square : squares) total += square;
    return (float)std::sqrt(total);
}

// Five steps of X <- aX + (bA + cA²)X with A = XXᵀ, or with A = XᵀX from the right where that is the smaller square:
// a matrix of norm 1 becomes one whose singular values are all near 1. One for each shape and thread.
class NewtonSchulz {
public:
    NewtonSchulz(int64_t rows, int64_t columns, bool bf16)
        : stream_(machine().engine), wide_(rows <= columns), small_(std::min(rows, columns)),
          type_(bf16 ? memory::data_type::bf16 : memory::data_type::f32) {
        const auto &engine = machine().engine;
        const memory::desc outside({rows, columns}, memory::data_type::f32, memory::format_tag::ab);
        const memory::desc x({rows, columns}, type_, memory::format_tag::ab);
        const memory::desc square({small_, small_}, type_, memory::format_tag::ab);
        const memory::desc transposed({columns, rows}, type_, memory::format_tag::ba);
        outside_ = memory(outside, engine, nullptr);
        x_ = memory(x, engine);
        next_ = memory(x, engine);
        transposed_ = memory(transposed, engine, nullptr);
        a_ = memory(square, engine);
        b_ = memory(square, engine);
        enter_ = dnnl::reorder(outside_, x_);
        leave_ = dnnl::reorder(x_, outside_);
        copy_x_ = dnnl::reorder(x_, next_);
        copy_a_ = dnnl::reorder(a_, b_);
        gram_ = wide_ ? matmul(x, transposed, square, 1, 0) : matmul(transposed, x, square, 1, 0);
        polynomial_ = matmul(square, square, square, 2.0315f, -4.7750f);
        apply_ = wide_ ? matmul(square, x, x, 1, 3.4445f) : matmul(x, square, x, 1, 3.4445f);
    }

    // `matrix`: (rows, columns) float32, of norm 1 at most, in place.
    void run(float *matrix) {
        outside_.set_data_handle(matrix);
        enter_.execute(stream_, outside_, x_);
        for (int step = 0; step < 5; ++step) {
            transposed_.set_data_handle(x_.get_data_handle());
            multiply(gram_, wide_ ? x_ : transposed_, wide_ ? transposed_ : x_, a_);
            copy_a_.execute(stream_, a_, b_);
            multiply(polynomial_, a_, a_, b_);
            copy_x_.execute(stream_, x_, next_);
            multiply(apply_, wide_ ? b_ : x_, wide_ ? x_ : b_, next_);
            std::swap(x_, next_);
        }
        leave_.execute(stream_, x_, outside_);
        stream_.wait();
    }

private:
    // c <- factor · ab + keep · c, as factor · (ab + keep/factor · c): where a sum does not come first, oneDNN takes its
    // reference product on CPUs without AVX512, which is a thousand times slower.
    dnnl::matmul matmul(const memory::desc &a, const memory::desc &b, const memory::desc &c, float factor, float keep) {
        dnnl::post_ops after;
        if (keep != 0) after.append_sum(keep / factor);
        if (factor != 1) after.append_eltwise(dnnl::algorithm::eltwise_linear, factor, 0);
        dnnl::primitive_attr attributes;
        attributes.set_post_ops(after);
        return dnnl::matmul(dnnl::matmul::primitive_desc(machine().engine, a, b, c, attributes));
    }
    void multiply(dnnl::matmul &primitive, memory &a, memory &b, memory &c) {
        primitive.execute(stream_, {{DNNL_ARG_SRC, a}, {DNNL_ARG_WEIGHTS, b}, {DNNL_ARG_DST, c}});
    }
    dnnl::stream stream_;
    bool wide_;
    int64_t small_;
    memory::data_type type_;
    memory outside_, x_, next_, transposed_, a_, b_;
    dnnl::reorder enter_, leave_, copy_x_, copy_a_;
    dnnl::matmul gram_, polynomial_, apply_;
};

void orthogonalize(float *matrix, int64_t rows, int64_t columns, bool bf16) {
    static thread_local std::map<std::tuple<int64_t, int64_t, bool>, std::unique_ptr<NewtonSchulz>> plans;
    auto &found = plans[{rows, columns, bf16}];
    if (!found) found = std::make_unique<NewtonSchulz>(rows, columns, bf16);
    found->run(matrix);
}

}  // namespace

// P gradients -> the norm of all of them (1,).
AOT(Norm) {
    const int64_t tensors = nparam - 1;
    std::vector<int64_t> sizes(tensors);
    for (int64_t i = 0; i < tensors; ++i) sizes[i] = count(ndims[i], shapes[i]);
    f(params[tensors])[0] = norm_of(params, sizes);
    return 0;
}

// coefficients {lr, beta1, beta2, eps, weight decay, scale of the gradients}, then P weights, P first and P second
// moments and P gradients -> the scale (1,). Weights and moments are updated in place, unless the scale is 0; tensors of
// one axis do not decay.
AOT(AdamW) {
    const float *c = f(params[0]);
    const float lr = c[0], beta1 = c[1], beta2 = c[2], eps = c[3], decay = c[4], scale = c[5];
    f(params[nparam - 1])[0] = scale;
    if (scale == 0) return 0;
    const int64_t tensors = (nparam - 2) / 4;
    void **weights = params + 1, **first = weights + tensors, **second = first + tensors, **grads = second + tensors;
    std::vector<int64_t> sizes(tensors);
    for (int64_t i = 0; i < tensors; ++i) sizes[i] = count(ndims[1 + i], shapes[1 + i]);
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < tensors; ++i) {
        const float shrink = ndims[1 + i] > 1 ? lr * decay : 0.0f;
        float *w = f(weights[i]), *m = f(first[i]), *v = f(second[i]);
        const float *g = f(grads[i]);
#pragma omp simd
        for (int64_t j = 0; j < sizes[i]; ++j) {
            const float grad = g[j] * scale;
            m[j] = beta1 * m[j] + (1.0f - beta1) * grad;
            v[j] = beta2 * v[j] + (1.0f - beta2) * grad * grad;
            w[j] -= lr * m[j] / (std::sqrt(v[j]) + eps) + shrink * w[j];
        }
    }
    return 0;
}

// coefficients {lr, momentum, weight decay, scale of the gradients, 1 for bfloat16}, then P weights, P moments and P
// gradients -> the scale (1,). Weights and moments are updated in place, unless the scale is 0.
AOT(Muon) {
    const float *c = f(params[0]);
    const float lr = c[0], momentum = c[1], decay = c[2], scale = c[3];
    f(params[nparam - 1])[0] = scale;
    if (scale == 0) return 0;
    const int64_t tensors = (nparam - 2) / 3;
    void **weights = params + 1, **moments = weights + tensors, **grads = moments + tensors;
    std::vector<int64_t> sizes(tensors);
    for (int64_t i = 0; i < tensors; ++i) sizes[i] = count(ndims[1 + i], shapes[1 + i]);
    int failed = 0;
#pragma omp parallel for schedule(dynamic) reduction(+ : failed)
    for (int64_t i = 0; i < tensors; ++i) try {
            const int64_t n = sizes[i], rows = shapes[1 + i][0], columns = n / rows;
            float *w = f(weights[i]), *m = f(moments[i]);
            const float *g = f(grads[i]);
            std::vector<float> update(n);
            double square = 0;
            for (int64_t start = 0; start < n; start += 4096) {
                float part = 0;
                const int64_t end = std::min(n, start + 4096);
#pragma omp simd reduction(+ : part)
                for (int64_t j = start; j < end; ++j) {
                    const float grad = (1.0f - momentum) * scale * g[j];
                    m[j] = momentum * m[j] + grad;
                    update[j] = momentum * m[j] + grad;
                    part += update[j] * update[j];
                }
                square += part;
            }
            const float unit = 1.0f / ((float)std::sqrt(square) + 1e-12f);
            for (float &value : update) value *= unit;
            orthogonalize(update.data(), rows, columns, c[4] != 0);
            const float step = lr * 0.2f * std::sqrt((float)std::max(rows, columns));
#pragma omp simd
            for (int64_t j = 0; j < n; ++j) w[j] -= step * update[j] + lr * decay * w[j];
        } catch (const std::exception &error) {
            std::fprintf(stderr, "mindpangu: CPU operator Muon: %s\n", error.what());
            failed += 1;
        }
    return failed;
}
