// Normalisations, gated activation and attention: what is bound by memory or by the count of operators.
//
// All tensors are float32.

#include "operator.hpp"

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#include <omp.h>

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <vector>

namespace {

float sigmoid(float z) { return 1.0f / (1.0f + std::exp(-z)); }

// Mean and 1/std of a row.
void moments(const float *x, int64_t n, float eps, float &mean, float &rstd) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; ++i) sum += x[i];
    mean = sum / n;
    float square = 0;
    const float m = mean;
#pragma omp simd reduction(+ : square)
    for (int64_t i = 0; i < n; ++i) square += (x[i] - m) * (x[i] - m);
    rstd = 1.0f / std::sqrt(square / n + eps);
}

struct GroupShape {
    int64_t n, c, hw, groups, per;
    float eps;
    bool silu;
    // settings: {groups, eps, 1 for SiLU}
    GroupShape(int ndim, const int64_t *shape, const float *settings)
        : n(shape[0]), c(shape[1]), hw(count(ndim - 2, shape + 2)), groups((int64_t)settings[0]), per(c / groups),
          eps(settings[1]), silu(settings[2] != 0) {}
};

// c += or = a · b for small dense blocks: C (m, n) from A (m, k) with strides (ai, ak) and B (k, n) with stride ldb.
// n is a multiple of 16 and m of 4; B and C are padded by who allocates them. A and B hold words of 32 bits: numbers, or,
// with BF16, two bfloat16 numbers that stand one after the other along k, so that k counts pairs.
//
// V is one register of the machine, and the sums of a block are as many as stay in registers: 16 of the 32 that AVX512
// has, 8 of AVX2's 16. (Vectors wider than the machine's go through memory: six times slower.)
#ifdef __AVX512F__
constexpr int64_t LANES = 16, MOST_COLUMNS = 4;
#else
constexpr int64_t LANES = 8, MOST_COLUMNS = 2;
#endif
typedef float V __attribute__((vector_size(LANES * sizeof(float)), aligned(4)));

#ifdef __AVX512BF16__
constexpr bool HAS_BF16 = true;
#else
constexpr bool HAS_BF16 = false;
#endif

template <bool BF16> V multiply_add(V sum, float a, V b) {
#ifdef __AVX512BF16__
    if constexpr (BF16) {
        typedef float Plain __attribute__((vector_size(64)));
        return (V)_mm512_dpbf16_ps((__m512)(Plain)sum, (__m512bh)_mm512_set1_ps(a), (__m512bh)(Plain)b);
    }
#endif
    return sum + a * b;
}

template <bool BF16, int COLUMNS>
void block(int64_t k, const float *a, int64_t ai, int64_t ak, const float *b, int64_t ldb, float *c, int64_t ldc,
           bool add) {
    V sum[4][COLUMNS];
    for (int r = 0; r < 4; ++r)
        for (int j = 0; j < COLUMNS; ++j) sum[r][j] = add ? *(const V *)(c + r * ldc + LANES * j) : V{};
    for (int64_t p = 0; p < k; ++p) {
        V row[COLUMNS];
        for (int j = 0; j < COLUMNS; ++j) row[j] = *(const V *)(b + p * ldb + LANES * j);
        for (int r = 0; r < 4; ++r) {
            const float s = a[r * ai + p * ak];
            for (int j = 0; j < COLUMNS; ++j) sum[r][j] = multiply_add<BF16>(sum[r][j], s, row[j]);
        }
    }
    for (int r = 0; r < 4; ++r)
        for (int j = 0; j < COLUMNS; ++j) *(V *)(c + r * ldc + LANES * j) = sum[r][j];
}

// What one product takes from L1 at a time: rows of B, and its columns.
constexpr int64_t DEPTH = 64, PANEL = 64;

template <bool BF16>
void columns(int64_t width, int64_t k, const float *a, int64_t ai, int64_t ak, const float *b, int64_t ldb, float *c,
             int64_t ldc, bool add) {
    constexpr int64_t WIDE = MOST_COLUMNS * LANES;
    for (; width >= WIDE; width -= WIDE, b += WIDE, c += WIDE)
        block<BF16, MOST_COLUMNS>(k, a, ai, ak, b, ldb, c, ldc, add);
    if (width == 3 * LANES) block<BF16, 3>(k, a, ai, ak, b, ldb, c, ldc, add);
    if (width == 2 * LANES) block<BF16, 2>(k, a, ai, ak, b, ldb, c, ldc, add);
    if (width == LANES) block<BF16, 1>(k, a, ai, ak, b, ldb, c, ldc, add);
}

template <bool BF16>
void matmul(int64_t m, int64_t n, int64_t k, const float *a, int64_t ai, int64_t ak, const float *b, int64_t ldb,
            float *c, int64_t ldc, bool add) {
    for (int64_t j = 0; j < n; j += PANEL)
        for (int64_t p = 0; p < k; p += DEPTH)
            for (int64_t i = 0; i < m; i += 4)
                columns<BF16>(std::min(PANEL, n - j), std::min(DEPTH, k - p), a + i * ai + p * ak, ai, ak,
                              b + p * ldb + j, ldb, c + i * ldc + j, ldc, add || p > 0);
}

// The same with B in panels: its columns j … j + 64, k rows of them in a row, at k · j. No two rows share a cache set.
template <bool BF16>
void matmul_panels(int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *b, float *c, int64_t ldc) {
    for (int64_t j = 0; j < n; j += PANEL) {
        const int64_t width = std::min(PANEL, n - j);
        for (int64_t i = 0; i < m; i += 4)
            columns<BF16>(width, k, a + i * lda, lda, 1, b + k * j, width, c + i * ldc + j, ldc, false);
    }
}

uint32_t rounded(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

// Two numbers as a word of bfloat16.
float pair(float first, float second) {
    const uint32_t bits = rounded(first) | rounded(second) << 16;
    float word;
    std::memcpy(&word, &bits, 4);
    return word;
}

int64_t padded(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

constexpr int64_t QUERIES = 32;  // rows of scores in flight: no (S, T) tensor is ever made

// One head's attention. Products take words (see `block`); scores, softmax and sums are float32 in both precisions.
template <bool BF16> struct Head {
    static constexpr int64_t PER = BF16 ? 2 : 1;  // numbers in a word
    int64_t s, t, d, stride, tp, dp, ld;          // ld: between rows of scores, never a multiple of 4 KB
    int64_t dw, tw;                               // words in d and t numbers
    float scale;
    bool causal;
    std::vector<float> q, p, k, kt, v, vt, dout, ds, dq, dk, dv, ot, packed, across_q;
    Head(int64_t s, int64_t t, int64_t d, int64_t stride, float scale, bool causal)
        : s(s), t(t), d(d), stride(stride), tp(padded(t, 16)), dp(padded(d, 16)), ld(tp + 16), dw((d + PER - 1) / PER),
          tw((t + PER - 1) / PER), scale(scale), causal(causal), q(QUERIES * dw), p(QUERIES * ld), kt(dw * tp),
          packed(BF16 ? QUERIES * ld : 0) {}

    // Word number j of a row of d numbers.
    float word(const float *row, int64_t j) const {
        if constexpr (!BF16) return row[j];
        return pair(row[2 * j], 2 * j + 1 < d ? row[2 * j + 1] : 0.0f);
    }
    // Rows of d numbers, word by word: the left side of a product over d.
    void along(const float *from, int64_t n, std::vector<float> &to) const {
        for (int64_t i = 0; i < n; ++i)
            for (int64_t j = 0; j < dw; ++j) to[i * dw + j] = word(from + i * stride, j);
    }
    // Words of row pairs, (n / PER, dp): the right side of a product over rows.
    void across(const float *from, int64_t n, std::vector<float> &to) const {
        for (int64_t i = 0; i < n; i += PER) {
            const float *one = from + i * stride, *two = one + stride;
            float *row = &to[i / PER * dp];
            if (!BF16) {
                std::memcpy(row, one, d * sizeof(float));
            } else if (i + 1 < n) {
                for (int64_t j = 0; j < d; ++j) row[j] = pair(one[j], two[j]);
            } else {
                for (int64_t j = 0; j < d; ++j) row[j] = pair(one[j], 0.0f);
            }
        }
    }
    // The t rows as columns, in panels: the right side of a product over d.
    void transposed(const float *from, std::vector<float> &to) const {
        for (int64_t i = 0; i < t; ++i) {
            const int64_t first = i / PANEL * PANEL, width = std::min(PANEL, tp - first);
            float *column = &to[dw * first + i - first];
            for (int64_t j = 0; j < dw; ++j) column[j * width] = word(from + i * stride, j);
        }
    }
    // Scores (n, ld) as words along a row, or of row pairs. Only BF16 has to make them.
    const float *scores_along(const std::vector<float> &from, int64_t n) {
        if (!BF16) return from.data();
        for (int64_t i = 0; i < n; ++i) {
            const float *row = &from[i * ld];
            for (int64_t j = 0; j < tw; ++j) packed[i * ld + j] = pair(row[2 * j], row[2 * j + 1]);
        }
        return packed.data();
    }
    const float *scores_across(const std::vector<float> &from, int64_t n) {
        if (!BF16) return from.data();
        for (int64_t i = 0; i < n; i += 2) {
            const float *one = &from[i * ld], *two = one + ld;
            for (int64_t j = 0; j < tp; ++j) packed[i / 2 * ld + j] = pair(one[j], two[j]);
        }
        return packed.data();
    }

    // Probabilities of `n` queries from number `first` on, into p.
    void probabilities(const float *queries, int64_t first, int64_t n) {
        along(queries + first * stride, n, q);
        matmul_panels<BF16>(padded(n, 4), tp, dw, q.data(), dw, kt.data(), p.data(), ld);
        for (int64_t i = 0; i < n; ++i) {
            float *row = &p[i * ld], top = -FLT_MAX, sum = 0;
            const int64_t seen = causal ? std::min(t, first + i + 1) : t;
            for (int64_t j = 0; j < seen; ++j) {
                row[j] *= scale;
                top = std::max(top, row[j]);
            }
#pragma omp simd reduction(+ : sum)
            for (int64_t j = 0; j < seen; ++j) {
                row[j] = std::exp(row[j] - top);
                sum += row[j];
            }
            const float inverse = 1.0f / sum;
            for (int64_t j = 0; j < seen; ++j) row[j] *= inverse;
            std::fill(row + seen, row + t, 0.0f);
        }
    }
    void forward(const float *keys, const float *values, const float *queries, float *out) {
        transposed(keys, kt);
        v.resize(tw * dp);
        across(values, t, v);
        ot.resize(QUERIES * dp);
        for (int64_t first = 0; first < s; first += QUERIES) {
            const int64_t n = std::min(QUERIES, s - first);
            probabilities(queries, first, n);
            matmul<BF16>(padded(n, 4), dp, tw, scores_along(p, n), ld, 1, v.data(), dp, ot.data(), dp, false);
            for (int64_t i = 0; i < n; ++i)
                std::memcpy(out + (first + i) * stride, &ot[i * dp], d * sizeof(float));
        }
    }
    void backward(const float *keys, const float *values, const float *queries, const float *gradient, float *to_q,
                  float *to_k, float *to_v) {
        transposed(keys, kt);
        k.resize(tw * dp);
        across(keys, t, k);
        vt.resize(dw * tp);
        transposed(values, vt);
        dout.resize(QUERIES * dw);
        across_q.assign((QUERIES + PER - 1) / PER * dp, 0.0f);
        ds.resize(QUERIES * ld);
        dq.resize(QUERIES * dp);
        dk.assign(padded(t, 4) * dp, 0.0f);
        dv.assign(padded(t, 4) * dp, 0.0f);
        for (int64_t first = 0; first < s; first += QUERIES) {
            const int64_t n = std::min(QUERIES, s - first), nw = (n + PER - 1) / PER;
            const float *rows = queries + first * stride, *grads = gradient + first * stride;
            probabilities(queries, first, n);
            along(grads, n, dout);
            matmul_panels<BF16>(padded(n, 4), tp, dw, dout.data(), dw, vt.data(), ds.data(), ld);
            for (int64_t i = 0; i < n; ++i) {
                float *row = &ds[i * ld], dot = 0;
                const float *prob = &p[i * ld];
#pragma omp simd reduction(+ : dot)
                for (int64_t j = 0; j < t; ++j) dot += row[j] * prob[j];
                for (int64_t j = 0; j < t; ++j) row[j] = (row[j] - dot) * prob[j] * scale;
            }
            matmul<BF16>(padded(n, 4), dp, tw, scores_along(ds, n), ld, 1, k.data(), dp, dq.data(), dp, false);
            across(rows, n, across_q);
            matmul<BF16>(padded(t, 4), dp, nw, scores_across(ds, n), 1, ld, across_q.data(), dp, dk.data(), dp, true);
            across(grads, n, across_q);
            matmul<BF16>(padded(t, 4), dp, nw, scores_across(p, n), 1, ld, across_q.data(), dp, dv.data(), dp, true);
            for (int64_t i = 0; i < n; ++i)
                std::memcpy(to_q + (first + i) * stride, &dq[i * dp], d * sizeof(float));
        }
        for (int64_t i = 0; i < t; ++i) {
            std::memcpy(to_k + i * stride, &dk[i * dp], d * sizeof(float));
            std::memcpy(to_v + i * stride, &dv[i * dp], d * sizeof(float));
        }
    }
};

// settings: {heads, scale, 1 for a causal mask, 1 for bfloat16 products where the CPU has them}
struct AttentionShape {
    int64_t n, s, t, heads, d, stride;
    float scale;
    bool causal, bf16;
    AttentionShape(int64_t **shapes, void **params)
        : n(shapes[0][0]), s(shapes[0][1]), t(shapes[1][1]), heads((int64_t)f(params[3])[0]), d(shapes[0][2] / heads),
          stride(shapes[0][2]), scale(f(params[3])[1]), causal(f(params[3])[2] != 0),
          bf16(HAS_BF16 && f(params[3])[3] != 0) {}
    template <class Work> void each(Work work) const { bf16 ? each_with<true>(work) : each_with<false>(work); }

  private:
    template <bool BF16, class Work> void each_with(Work work) const {
#pragma omp parallel
        {
            Head<BF16> head(s, t, d, stride, scale, causal);
#pragma omp for
            for (int64_t i = 0; i < n * heads; ++i) {
                const int64_t row = i / heads, channel = i % heads * d;
                work(head, row * s * stride + channel, row * t * stride + channel);
            }
        }
    }
};

}  // namespace

// x (N, C, …), gamma (C,), beta (C,), settings (3,) -> y.
AOT(GroupNorm) {
    (void)nparam;
    const GroupShape g(ndims[0], shapes[0], f(params[3]));
    const float *x = f(params[0]), *gamma = f(params[1]), *beta = f(params[2]);
    float *y = f(params[4]);
#pragma omp parallel for
    for (int64_t i = 0; i < g.n * g.groups; ++i) {
        float mean, rstd;
        moments(x + i * g.per * g.hw, g.per * g.hw, g.eps, mean, rstd);
        for (int64_t j = 0; j < g.per; ++j) {
            const int64_t channel = i % g.groups * g.per + j, start = (i * g.per + j) * g.hw;
            const float a = gamma[channel] * rstd, b = beta[channel] - mean * a;
            if (g.silu) {
#pragma omp simd
                for (int64_t k = start; k < start + g.hw; ++k) {
                    const float z = a * x[k] + b;
                    y[k] = z * sigmoid(z);
                }
            } else {
#pragma omp simd
                for (int64_t k = start; k < start + g.hw; ++k) y[k] = a * x[k] + b;
            }
        }
    }
    return 0;
}

// x, gamma, beta, settings, dy -> dx, dgamma, dbeta. The statistics are taken again: cheaper than keeping them.
AOT(GroupNormGrad) {
    (void)nparam;
    const GroupShape g(ndims[0], shapes[0], f(params[3]));
    const float *x = f(params[0]), *gamma = f(params[1]), *beta = f(params[2]), *dy = f(params[4]);
    float *dx = f(params[5]), *dgamma = f(params[6]), *dbeta = f(params[7]);
    std::vector<float> parts(2 * g.n * g.c);
    float *part_gamma = parts.data(), *part_beta = parts.data() + g.n * g.c;
#pragma omp parallel for
    for (int64_t i = 0; i < g.n * g.groups; ++i) {
        float mean, rstd, sum = 0, sum_hat = 0;
        moments(x + i * g.per * g.hw, g.per * g.hw, g.eps, mean, rstd);
        for (int64_t j = 0; j < g.per; ++j) {
            const int64_t channel = i % g.groups * g.per + j, start = (i * g.per + j) * g.hw;
            const float a = gamma[channel] * rstd, b = beta[channel] - mean * a;
            float to_beta = 0, to_gamma = 0;
            if (g.silu) {
#pragma omp simd reduction(+ : to_beta, to_gamma)
                for (int64_t k = start; k < start + g.hw; ++k) {
                    const float z = a * x[k] + b, s = sigmoid(z), dz = dy[k] * s * (1.0f + z * (1.0f - s));
                    dx[k] = dz;
                    to_beta += dz;
                    to_gamma += dz * (x[k] - mean) * rstd;
                }
            } else {
#pragma omp simd reduction(+ : to_beta, to_gamma)
                for (int64_t k = start; k < start + g.hw; ++k) {
                    dx[k] = dy[k];
                    to_beta += dy[k];
                    to_gamma += dy[k] * (x[k] - mean) * rstd;
                }
            }
            part_gamma[i * g.per + j] = to_gamma;
            part_beta[i * g.per + j] = to_beta;
            sum += gamma[channel] * to_beta;
            sum_hat += gamma[channel] * to_gamma;
        }
        sum /= g.per * g.hw;
        sum_hat /= g.per * g.hw;
        for (int64_t j = 0; j < g.per; ++j) {
            const int64_t channel = i % g.groups * g.per + j, start = (i * g.per + j) * g.hw;
            const float scale = gamma[channel];
#pragma omp simd
            for (int64_t k = start; k < start + g.hw; ++k)
                dx[k] = rstd * (scale * dx[k] - sum - (x[k] - mean) * rstd * sum_hat);
        }
    }
    for (int64_t c = 0; c < g.c; ++c) {
        dgamma[c] = dbeta[c] = 0;
        for (int64_t n = 0; n < g.n; ++n) {
            dgamma[c] += part_gamma[n * g.c + c];
            dbeta[c] += part_beta[n * g.c + c];
        }
    }
    return 0;
}

// x (…, C), gamma (C,), beta (C,), eps (1,) -> y.
AOT(LayerNorm) {
    (void)nparam;
    const int64_t c = shapes[0][ndims[0] - 1], rows = count(ndims[0] - 1, shapes[0]);
    const float *x = f(params[0]), *gamma = f(params[1]), *beta = f(params[2]), eps = f(params[3])[0];
    float *y = f(params[4]);
#pragma omp parallel for
    for (int64_t i = 0; i < rows; ++i) {
        float mean, rstd;
        moments(x + i * c, c, eps, mean, rstd);
#pragma omp simd
        for (int64_t j = 0; j < c; ++j) y[i * c + j] = (x[i * c + j] - mean) * rstd * gamma[j] + beta[j];
    }
    return 0;
}

// x, gamma, eps, dy -> dx, dgamma, dbeta.
AOT(LayerNormGrad) {
    (void)nparam;
    const int64_t c = shapes[0][ndims[0] - 1], rows = count(ndims[0] - 1, shapes[0]);
    const float *x = f(params[0]), *gamma = f(params[1]), eps = f(params[2])[0], *dy = f(params[3]);
    float *dx = f(params[4]), *dgamma = f(params[5]), *dbeta = f(params[6]);
    // One pair of sums a thread, added in their order: the same bits every time.
    const int threads = omp_get_max_threads();
    std::vector<float> parts(2 * c * threads);
#pragma omp parallel num_threads(threads)
    {
        float *to_gamma = parts.data() + 2 * c * omp_get_thread_num(), *to_beta = to_gamma + c;
#pragma omp for schedule(static)
        for (int64_t i = 0; i < rows; ++i) {
            const float *row = x + i * c, *grad = dy + i * c;
            float mean, rstd, sum = 0, sum_hat = 0;
            moments(row, c, eps, mean, rstd);
#pragma omp simd reduction(+ : sum, sum_hat)
            for (int64_t j = 0; j < c; ++j) {
                const float hat = (row[j] - mean) * rstd;
                to_gamma[j] += grad[j] * hat;
                to_beta[j] += grad[j];
                sum += gamma[j] * grad[j];
                sum_hat += gamma[j] * grad[j] * hat;
            }
            sum /= c;
            sum_hat /= c;
#pragma omp simd
            for (int64_t j = 0; j < c; ++j)
                dx[i * c + j] = rstd * (gamma[j] * grad[j] - sum - (row[j] - mean) * rstd * sum_hat);
        }
    }
    for (int64_t j = 0; j < c; ++j) {
        dgamma[j] = dbeta[j] = 0;
        for (int i = 0; i < threads; ++i) {
            dgamma[j] += parts[2 * c * i + j];
            dbeta[j] += parts[2 * c * i + c + j];
        }
    }
    return 0;
}

// x (…, 2C) -> value · gelu(gate), (…, C).
AOT(Geglu) {
    (void)nparam;
    const int64_t c = shapes[1][ndims[1] - 1], rows = count(ndims[1] - 1, shapes[1]);
    const float *x = f(params[0]);
    float *y = f(params[1]);
#pragma omp parallel for
    for (int64_t i = 0; i < rows; ++i) {
        const float *value = x + 2 * i * c, *gate = value + c;
#pragma omp simd
        for (int64_t j = 0; j < c; ++j)
            y[i * c + j] = value[j] * 0.5f * gate[j] * (1.0f + std::erf(gate[j] * 0.70710678f));
    }
    return 0;
}

// x, dy -> dx.
AOT(GegluGrad) {
    (void)nparam;
    const int64_t c = shapes[1][ndims[1] - 1], rows = count(ndims[1] - 1, shapes[1]);
    const float *x = f(params[0]), *dy = f(params[1]);
    float *dx = f(params[2]);
#pragma omp parallel for
    for (int64_t i = 0; i < rows; ++i) {
        const float *value = x + 2 * i * c, *gate = value + c;
        float *to_value = dx + 2 * i * c, *to_gate = to_value + c;
#pragma omp simd
        for (int64_t j = 0; j < c; ++j) {
            const float z = gate[j], phi = 0.5f * (1.0f + std::erf(z * 0.70710678f)), g = dy[i * c + j];
            to_value[j] = g * z * phi;
            to_gate[j] = g * value[j] * (phi + z * 0.39894228f * std::exp(-0.5f * z * z));
        }
    }
    return 0;
}

// q (N, S, heads·D), k, v (N, T, heads·D), settings {heads, scale, causal, bf16} -> (N, S, heads·D).
AOT(Attention) {
    (void)nparam;
    (void)ndims;
    const AttentionShape a(shapes, params);
    const float *q = f(params[0]), *k = f(params[1]), *v = f(params[2]);
    float *out = f(params[4]);
    a.each([&](auto &head, int64_t at_s, int64_t at_t) {
        head.forward(k + at_t, v + at_t, q + at_s, out + at_s);
    });
    return 0;
}

// q, k, v, settings, dout -> dq, dk, dv. The probabilities are computed again, block by block.
AOT(AttentionGrad) {
    (void)nparam;
    (void)ndims;
    const AttentionShape a(shapes, params);
    const float *q = f(params[0]), *k = f(params[1]), *v = f(params[2]), *dout = f(params[4]);
    float *dq = f(params[5]), *dk = f(params[6]), *dv = f(params[7]);
    a.each([&](auto &head, int64_t at_s, int64_t at_t) {
        head.backward(k + at_t, v + at_t, q + at_s, dout + at_s, dq + at_s, dk + at_t, dv + at_t);
    });
    return 0;
}
