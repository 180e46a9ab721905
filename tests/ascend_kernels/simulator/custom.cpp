// Both operators in plain loops, as MindSpore calls a library on a CPU: for the glue alone, in float32.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace {

struct Call {
    int64_t batch, queries, keys, channels, heads, width;
    float scale;
    bool causal;

    Call(int64_t** shapes, void** attributes)
        : batch(shapes[0][0]), queries(shapes[0][1]), keys(shapes[1][1]), channels(shapes[0][2]),
          heads(*static_cast<int64_t*>(attributes[0])), width(channels / heads),
          scale(*static_cast<float*>(attributes[1])), causal(*static_cast<bool*>(attributes[2])) {}

    float dot(const float* a, int64_t i, const float* b, int64_t j, int64_t n, int64_t h) const {
        float sum = 0;
        for (int64_t c = 0; c < width; ++c) {
            sum += a[(n * queries + i) * channels + h * width + c] * b[(n * keys + j) * channels + h * width + c];
        }
        return sum;
    }

    int64_t seen(int64_t i) const { return causal && i + 1 < keys ? i + 1 : keys; }

    template <typename Visit>
    void rows(Visit visit) const {
        for (int64_t n = 0; n < batch; ++n) {
            for (int64_t h = 0; h < heads; ++h) {
                for (int64_t i = 0; i < queries; ++i) {
                    visit(n, h, i);
                }
            }
        }
    }
};

}  // namespace

extern "C" int Forward(int count, void** values, int*, int64_t** shapes, const char**, void*, void*) {
    if (count != 9) {
        return 1;
    }
    const Call call(shapes, values + 3);
    const float *q = static_cast<float*>(values[0]), *k = static_cast<float*>(values[1]), *v = static_cast<float*>(values[2]);
    float *o = static_cast<float*>(values[7]), *lse = static_cast<float*>(values[8]);
    call.rows([&](int64_t n, int64_t h, int64_t i) {
        float sum = 0;
        std::vector<float> out(call.width, 0.0f);
        for (int64_t j = 0; j < call.seen(i); ++j) {
            const float p = std::exp(call.scale * call.dot(q, i, k, j, n, h));
            sum += p;
            for (int64_t c = 0; c < call.width; ++c) {
                out[c] += p * v[(n * call.keys + j) * call.channels + h * call.width + c];
            }
        }
        lse[(n * call.heads + h) * call.queries + i] = std::log(sum);
        for (int64_t c = 0; c < call.width; ++c) {
            o[(n * call.queries + i) * call.channels + h * call.width + c] = out[c] / sum;
        }
    });
    return 0;
}

extern "C" int Backward(int count, void** values, int*, int64_t** shapes, const char**, void*, void*) {
    if (count != 14) {
        return 1;
    }
    const Call call(shapes, values + 6);
    const float* in[6];
    for (int i = 0; i < 6; ++i) {
        in[i] = static_cast<float*>(values[i]);
    }
    const auto [q, k, v, grad, lse, delta] = in;
    float* out[3];
    for (int i = 0; i < 3; ++i) {
        out[i] = static_cast<float*>(values[11 + i]);
        const int64_t length = i == 0 ? call.queries : call.keys;
        std::fill_n(out[i], call.batch * length * call.channels, 0.0f);
    }
    call.rows([&, k = k, q = q, v = v, grad = grad, lse = lse, delta = delta](int64_t n, int64_t h, int64_t i) {
        const int64_t line = (n * call.heads + h) * call.queries + i;
        for (int64_t j = 0; j < call.seen(i); ++j) {
            const float p = std::exp(call.scale * call.dot(q, i, k, j, n, h) - lse[line]);
            const float ds = call.scale * p * (call.dot(grad, i, v, j, n, h) - delta[line]);
            for (int64_t c = 0; c < call.width; ++c) {
                const int64_t row = (n * call.queries + i) * call.channels + h * call.width + c;
                const int64_t column = (n * call.keys + j) * call.channels + h * call.width + c;
                out[0][row] += ds * k[column];
                out[1][column] += ds * q[row];
                out[2][column] += p * grad[row];
            }
        }
    });
    return 0;
}
