// The C interface of depthwise convolutions at inference. `Convolution` is mirrored by ctypes in ../library.py.
#pragma once

#include <cstdint>

// One call: activation(convolution of x + bias + x). B batch, C channels, K kernel size: 3, 5, 7 or 9.
struct Convolution {
    int64_t batch, height, width, channels;
    int64_t kernel, stride, padding;
    int64_t residual;      // whether x is added; then the stride is 1 and the size is kept
    int64_t activation;    // an Activation
    int64_t element;       // an ElementType, of x and y
    int64_t threads;
    const void* x;         // (B, H, W, C)
    const float* weight;   // (C, K, K)
    const float* bias;     // (C), or null
    float* workspace;      // as many floats as workspace_size() says
    void* y;               // (B, out_height(), out_width(), C)

    // Floats of a cache line, and pixels that are computed together: as many sums as hide the time that a product takes;
    // sides of 7 are common.
    static constexpr int64_t LINE = 16, TILE = 7;

    int64_t taps() const { return kernel * kernel; }
    int64_t out_height() const { return (height + 2 * padding - kernel) / stride + 1; }
    int64_t out_width() const { return (width + 2 * padding - kernel) / stride + 1; }
    int64_t padded_width() const { return width + 2 * padding; }

    // Channels that are convolved together: all, unless K rows of them outgrow the L2 cache, or there is too little
    // else to deal out to the threads.
    int64_t group() const {
        const int64_t kept = 4 * kernel * padded_width() * channels;
        const int64_t to_fit = over(kept, 256 << 10), to_deal = least(channels / 128, over(2 * threads, batch));
        return over(over(channels, to_fit > to_deal ? to_fit : to_deal), LINE) * LINE;
    }
    int64_t groups() const { return over(channels, group()); }

    // Rows are dealt out too where images and groups are few. A band reads the last rows of the one before it again.
    int64_t bands() const { return least(over(2 * threads, batch * groups()), over(out_height(), 2 * kernel)); }

    // Floats from a pixel to the next in the kept rows: an odd number of cache lines, so that pixels share no set of a
    // cache.
    int64_t step() const { return (group() / LINE | 1) * LINE; }

    // Weights and bias of a group, a cache line of channels after the other; K rows of x with their padding and a tile of y, which each thread has.
    int64_t weights_size() const { return (taps() + 1) * group(); }
    int64_t rows_size() const { return kernel * padded_width() * step(); }
    int64_t workspace_size() const { return groups() * weights_size() + threads * (rows_size() + TILE * step()); }

private:
    static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
    static int64_t over(int64_t a, int64_t b) { return (a + b - 1) / b; }
};

// The same kernel, compiled once per instruction set.
using ConvolutionKernel = void(const Convolution&);
extern ConvolutionKernel convolution_baseline, convolution_avx2, convolution_avx512;
