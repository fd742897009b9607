// Where a unit's data lies and how a route walks it.
#pragma once

#include "elements.h"
#include "scan.h"
#include "simd.h"

namespace {

constexpr int AHEAD = 8;    // steps by which memory is fetched early
enum RouteBit { TRANSPOSE = 1, FLIP_ROWS = 2, FLIP_COLS = 4, RESTART = 8 };

#if defined(__GNUC__) || defined(__clang__)
inline void prefetch(const float* address) { __builtin_prefetch(address); }
#else
inline void prefetch(const float*) {}
#endif

inline int64_t up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// The channels that one unit works on.
struct Channels {
    int64_t first;
    int count;
    Channels(const Scan& scan, int64_t block)
        : first(block * BLOCK), count((int)smaller(BLOCK, scan.channels - block * BLOCK)) {}
};

// A plane holds one block of channels of an image as float32: pixel (row, col) starts at (row * pitch + col) * BLOCK.
// Planes are compact, so that a walk in any direction stays in the caches, and the pitch is odd, so that the pixels of a
// column do not all compete for the same few cache lines.
inline int64_t pitch_of(const Scan& scan) { return scan.width | 1; }
inline int64_t plane_size(const Scan& scan) { return scan.height * pitch_of(scan) * BLOCK; }

// The steps of one chunk of a walk.
struct Chunk {
    int steps;
    int64_t pixel[CHUNK + AHEAD];     // index into a plane, and of the steps after the chunk, to be prefetched
    int64_t proj[CHUNK];              // index into the float32 projections of an image
    bool restart[CHUNK];              // the state is zero before this step
};

// A route as strides, once for planes and once for pixels without pitch.
struct Walk {
    int64_t line, length;
    int64_t offset, outer, inner;
    int64_t proj_offset, proj_outer, proj_inner;
    bool restart;

    // proj_stride: floats of the projections from one pixel to the next.
    Walk(const Scan& scan, int64_t code, int64_t proj_stride) {
        const int64_t height = scan.height, width = scan.width, pitch = pitch_of(scan);
        const int64_t down = code & FLIP_ROWS ? -1 : 1, right = code & FLIP_COLS ? -1 : 1;
        const int64_t row = code & FLIP_ROWS ? height - 1 : 0, col = code & FLIP_COLS ? width - 1 : 0;
        const bool transpose = code & TRANSPOSE;
        line = transpose ? height : width;
        length = height * width;
        offset = (row * pitch + col);
        outer = transpose ? right : down * pitch;
        inner = transpose ? down * pitch : right;
        proj_offset = (row * width + col) * proj_stride;
        proj_outer = (transpose ? right : down * width) * proj_stride;
        proj_inner = (transpose ? down * width : right) * proj_stride;
        restart = code & RESTART;
    }

    void chunk(int64_t index, Chunk& out) const {
        const int64_t first = index * CHUNK;
        out.steps = (int)smaller(CHUNK, length - first);
        int64_t at_line = first / line, at = first % line;
        for (int i = 0; i < CHUNK + AHEAD; ++i) {
            out.pixel[i] = offset + outer * at_line + inner * at;
            if (i < out.steps) {
                out.proj[i] = proj_offset + proj_outer * at_line + proj_inner * at;
                out.restart[i] = restart && at == 0;
            }
            if (first + i + 1 == length) continue;
            if (++at == line) {
                at = 0;
                ++at_line;
            }
        }
    }
};

inline const char* element_address(const Scan& scan, const void* tensor, int64_t image, int64_t row, Channels channels) {
    const int64_t index = (image * scan.height + row) * scan.width * scan.channels + channels.first;
    return (const char*)tensor + index * (scan.element == FLOAT32 ? 4 : 2);
}

template <class Element, class Convert>
SCAN_INLINE void read_row(float* to, const Element* from, int64_t width, int64_t stride, int count, Convert convert) {
    for (int64_t col = 0; col < width; ++col, to += BLOCK, from += stride) {
        if (count == BLOCK) {
            for (int c = 0; c < BLOCK; ++c) to[c] = convert(from[c]);
        } else {
            for (int c = 0; c < BLOCK; ++c) to[c] = c < count ? convert(from[c]) : 0.0f;
        }
    }
}

inline void read_plane(const Scan& scan, const void* tensor, int64_t image, Channels channels, float* plane) {
    for (int64_t row = 0; row < scan.height; ++row) {
        const void* from = element_address(scan, tensor, image, row, channels);
        float* to = plane + row * pitch_of(scan) * BLOCK;
        if (scan.element == FLOAT32)
            read_row(to, (const float*)from, scan.width, scan.channels, channels.count, [](float a) { return a; });
        else if (scan.element == BFLOAT16)
            read_row(to, (const uint16_t*)from, scan.width, scan.channels, channels.count, from_bfloat16);
        else
            read_row(to, (const uint16_t*)from, scan.width, scan.channels, channels.count, from_float16);
    }
}

template <class Element, class Convert>
SCAN_INLINE void write_row(Element* to, const float* from, int64_t width, int64_t stride, int count, Convert convert) {
    for (int64_t col = 0; col < width; ++col, to += stride, from += BLOCK) {
        if (count == BLOCK) {
            for (int c = 0; c < BLOCK; ++c) to[c] = convert(from[c]);
        } else {
            for (int c = 0; c < count; ++c) to[c] = convert(from[c]);
        }
    }
}

inline void write_plane(const Scan& scan, const float* plane, void* tensor, int64_t image, Channels channels) {
    for (int64_t row = 0; row < scan.height; ++row) {
        void* to = (void*)element_address(scan, tensor, image, row, channels);
        const float* from = plane + row * pitch_of(scan) * BLOCK;
        if (scan.element == FLOAT32)
            write_row((float*)to, from, scan.width, scan.channels, channels.count, [](float a) { return a; });
        else if (scan.element == BFLOAT16)
            write_row((uint16_t*)to, from, scan.width, scan.channels, channels.count, to_bfloat16);
        else
            write_row((uint16_t*)to, from, scan.width, scan.channels, channels.count, to_float16);
    }
}

}  // namespace
