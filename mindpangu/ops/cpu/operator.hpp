// What all CPU operators share: the entry point's form, float tensors, oneDNN's engine.
//
// Entry points follow MindSpore's `ops.Custom` (func_type "aot"): inputs, then outputs; 0 means done.

#pragma once

#include <dnnl.hpp>

#include <cstdint>

#define AOT(name) \
    extern "C" int name(int nparam, void **params, int *ndims, int64_t **shapes, const char **, void *, void *)

inline float *f(void *p) { return static_cast<float *>(p); }

inline int64_t count(int ndim, const int64_t *shape) {
    int64_t n = 1;
    for (int i = 0; i < ndim; ++i) n *= shape[i];
    return n;
}

struct Machine {
    dnnl::engine engine;
    dnnl::stream stream;
    Machine() {
        // MindSpore's own oneDNN needs ONEDNN_MAX_CPU_ISA=AVX2; this copy does not, and must be told before all else.
        dnnl::set_max_cpu_isa(dnnl::cpu_isa::isa_default);
        engine = dnnl::engine(dnnl::engine::kind::cpu, 0);
        stream = dnnl::stream(engine);
    }
};

inline Machine &machine() {
    static Machine one;
    return one;
}
