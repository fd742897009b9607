// The 1-D selective scan: the call, mirrored by ctypes in ../library.py, and the kernels. B batch, D channels,
// L length, G groups, N state size.
#pragma once

#include <cstdint>

#include "scan.h"

// A tensor of the shape of u, (B, D, L), with its strides in elements; `data` is null if it does not exist.
struct Sequence {
    void* data;
    int64_t element;    // ElementType
    int64_t batch, channel, step;
};

// B or C as float32: (B, G, N, L) with steps one after the other, or constant (D, N) without gaps.
struct Weights {
    const float* data;
    int64_t constant;
    int64_t batch, group, state;    // strides, unless it is constant
};

struct SelectiveScan {
    int64_t batch, channels, length, groups, state;
    int64_t softplus, threads;
    Sequence u, delta, z, y;
    Weights B, C;
    const float* A;                // (D, N)
    const float* D;                // (D,) or null
    const float* delta_bias;       // (D,) or null
    const float* initial_state;    // (B, D, N) or null
    float* last_state;             // (B, D, N), written by forward
    float* carry;                  // (B, ceil(L / CHUNK), N, D), written by forward, read by backward
    float* workspace;              // as many floats as SelectiveScanKernels::workspace says
    // What follows is for backward.
    Sequence grad_y, grad_u, grad_delta, grad_z;
    const float* grad_last_state;    // (B, D, N)
    float *grad_B, *grad_C;          // of the shape of B and C, without gaps
    float* grad_A;                   // (D, N)
    float* grad_D;                   // (D,) or null
    float* grad_delta_bias;          // (D,) or null
    float* grad_initial_state;       // (B, D, N) or null

    bool backward() const { return grad_y.data != nullptr; }
    int64_t group_channels() const { return channels / groups; }
    int64_t chunks() const { return (length + CHUNK - 1) / CHUNK; }
};

// The same kernels, compiled once per instruction set.
struct SelectiveScanKernels {
    int64_t (*workspace)(const SelectiveScan&);    // floats, for the direction that the call is set up for
    void (*forward)(const SelectiveScan&);
    void (*backward)(const SelectiveScan&);
};
extern const SelectiveScanKernels selective_scan_baseline, selective_scan_avx2, selective_scan_avx512;
