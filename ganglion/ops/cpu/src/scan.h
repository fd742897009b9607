// The C interface of the library, and what its translation units share. `Scan` is mirrored by ctypes in ../__init__.py.
#pragma once

#include <cstdint>

// Channels that are walked together: two cache lines of float32.
constexpr int BLOCK = 32;
// The forward pass records the state every CHUNK steps, and both passes work chunk by chunk.
constexpr int CHUNK = 64;

// One call. B batch, H W height and width, L = H * W, D channels, K routes, R rank, N state size, P = R + 2 * N.
struct Scan {
    int64_t batch, height, width, channels, routes, rank, state;
    int64_t threads;
    int64_t groups;              // backward: images are dealt to this many groups, one partial sum each
    int64_t slices;              // backward: channel blocks are dealt to this many slices, one partial sum each
    int64_t element;             // ElementType of x, proj, y and their gradients
    const int64_t* codes;        // (K,) routes as bit fields, see ganglion.ops.routes
    const void* x;               // (B, L, D)
    const void* proj;            // (B, L, K, P)
    const float* dt_weight;      // (K, D, R)
    const float* dt_bias;        // (K, D)
    const float* A;              // (K, D, N)
    const float* D;              // (K, D) or null
    float* carry;                // (B, K, ceil(L / CHUNK), N, D), written by forward, read by backward
    float* workspace;            // as many floats as Kernels::workspace says
    void* y;                     // (B, L, D)
    const void* grad_y;          // (B, L, D)
    void* grad_x;                // (B, L, D)
    void* grad_proj;             // (B, L, K, P)
    float* grad_dt_weight;       // (K, D, R)
    float* grad_dt_bias;         // (K, D)
    float* grad_A;               // (K, D, N)
    float* grad_D;               // (K, D) or null

    bool backward() const { return grad_y != nullptr; }
    int64_t pixels() const { return height * width; }
    int64_t per_route() const { return rank + 2 * state; }
    int64_t blocks() const { return (channels + BLOCK - 1) / BLOCK; }
    int64_t chunks() const { return (pixels() + CHUNK - 1) / CHUNK; }
};

// The same kernels, compiled once per instruction set.
struct Kernels {
    int64_t (*workspace)(const Scan&);    // floats, for the direction that the call is set up for
    void (*forward)(const Scan&);
    void (*backward)(const Scan&);
};
extern const Kernels kernels_baseline, kernels_avx2, kernels_avx512;
