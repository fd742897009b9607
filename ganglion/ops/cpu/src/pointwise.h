// The C interface of what follows a matrix product. `Pointwise` is mirrored by ctypes in ../library.py.
#pragma once

#include <cstdint>

// One call: y = activation(x + bias), of rows of channels. y may be x.
struct Pointwise {
    int64_t rows, channels;
    int64_t activation;      // an Activation
    int64_t x_type, y_type;  // ElementTypes
    int64_t threads;
    const void* x;           // (rows, C)
    const float* bias;       // (C), or null
    void* y;                 // (rows, C)
};

// The same kernel, compiled once per instruction set.
using PointwiseKernel = void(const Pointwise&);
extern PointwiseKernel pointwise_baseline, pointwise_avx2, pointwise_avx512;
