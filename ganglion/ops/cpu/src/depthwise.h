// The C interface of depthwise convolutions. `Depthwise` is mirrored by ctypes in ../__init__.py.
#pragma once

#include <cstdint>

// One call. B batch, H W height and width, C channels, K kernel size: odd, at most 9.
struct Depthwise {
    int64_t batch, height, width, channels, kernel;
    int64_t threads;
    const float* x;         // (B, H, W, C)
    const float* grad_y;    // (B, H, W, C)
    float* workspace;       // as many floats as workspace_size() says
    float* grad_weight;     // (C, K, K)

    // Channels whose partial sums lie together.
    static constexpr int64_t GROUP = 32;

    int64_t taps() const { return kernel * kernel; }
    int64_t groups() const { return (channels + GROUP - 1) / GROUP; }
    int64_t workspace_size() const { return pieces() * groups() * taps() * GROUP; }

    // Rows that are walked together, so that they stay in the L1 cache from one row of taps to the next.
    int64_t band() const { return width < 64 ? least(height, 64 / width) : 1; }
    int64_t bands() const { return (height + band() - 1) / band(); }
    // Bands of all images are dealt to this many pieces with one partial sum each: few enough pixels for a short sum,
    // enough of them that adding up the pieces costs little.
    int64_t pieces() const {
        const int64_t wanted = least(batch * height * width / 256, 64);
        return wanted < 1 ? 1 : least(batch * bands(), wanted);
    }
    // Where there are few pieces, groups of channels are dealt to as many slices as keep some threads busy.
    int64_t slices() const { return least(groups(), (16 + pieces() - 1) / pieces()); }

private:
    static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
};

// The same kernel, compiled once per instruction set.
using DepthwiseKernel = void(const Depthwise&);
extern DepthwiseKernel depthwise_baseline, depthwise_avx2, depthwise_avx512;
