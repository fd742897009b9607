// What the kernels of every operator need: units, memory, threads.
#pragma once

#include <cstdint>

#include "simd.h"

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace {

constexpr float LN2 = 0.693147180559945309f;
constexpr float LOG2E = 1.44269504088896340f;

inline int64_t up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// Hands out pieces of memory, whole cache lines; without memory it only counts.
struct Space {
    float* memory;
    int64_t used = 0;
    float* take(int64_t floats) {
        float* piece = memory ? memory + used : nullptr;
        used += up(floats, 32);
        return piece;
    }
};

inline void zero(float* to, int64_t floats) {
    for (int64_t i = 0; i < floats; ++i) to[i] = 0.0f;
}

inline int thread_number() {
#if defined(_OPENMP)
    return omp_get_thread_num();
#else
    return 0;
#endif
}

// States decay through the subnormal numbers, which cost some processors a hundred cycles each. They are zero here.
struct FlushSubnormals {
#if defined(__SSE__) || defined(_M_X64)
    unsigned saved = _mm_getcsr();
    FlushSubnormals() { _mm_setcsr(saved | 0x8040); }
    ~FlushSubnormals() { _mm_setcsr(saved); }
#endif
};

}  // namespace
