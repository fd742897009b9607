// Where a unit's data lies and how a route walks it.
#pragma once

#include "common.h"
#include "elements.h"
#include "scan.h"
#include "simd.h"

namespace {

enum RouteBit { TRANSPOSE = 1, FLIP_ROWS = 2, FLIP_COLS = 4, RESTART = 8 };

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
    int64_t plane[CHUNK];    // index into a plane
    int64_t pixel[CHUNK];    // index among the image's pixels
    bool restart[CHUNK];     // the state is zero before this step
};

// A position on a plane and among the pixels, moved along a route.
struct Place {
    int64_t plane, pixel;
    Place operator+(Place other) const { return {plane + other.plane, pixel + other.pixel}; }
    Place operator*(int64_t times) const { return {plane * times, pixel * times}; }
};

// A route as strides: from step to step, and from the last step of a line to the first of the next.
struct Walk {
    int64_t line, length;
    Place start, inner, outer, next_line;
    bool restart;

    Walk(const Scan& scan, int64_t code) : length(scan.pixels()), restart(code & RESTART) {
        const Place down = Place{pitch_of(scan) * BLOCK, scan.width} * (code & FLIP_ROWS ? -1 : 1);
        const Place right = Place{BLOCK, 1} * (code & FLIP_COLS ? -1 : 1);
        const bool transpose = code & TRANSPOSE;
        line = transpose ? scan.height : scan.width;
        start = down * (code & FLIP_ROWS ? 1 - scan.height : 0) + right * (code & FLIP_COLS ? 1 - scan.width : 0);
        inner = transpose ? down : right;
        outer = transpose ? right : down;
        next_line = outer + inner * (1 - line);
    }

    void chunk(int64_t index, Chunk& out) const {
        const int64_t first = index * CHUNK;
        out.steps = (int)smaller(CHUNK, length - first);
        int64_t at = first % line;
        Place place = start + outer * (first / line) + inner * at;
        for (int i = 0; i < out.steps; ++i) {
            out.plane[i] = place.plane;
            out.pixel[i] = place.pixel;
            out.restart[i] = restart && at == 0;
            const bool ends = ++at == line;
            place = place + (ends ? next_line : inner);
            at = ends ? 0 : at;
        }
    }
};

// Asks for a pixel of a plane ahead of its use, which pays where the planes of a large map outgrow the caches.
SCAN_INLINE void prefetch([[maybe_unused]] const float* pixel) {
#if defined(__GNUC__) || defined(__clang__)
    for (int line = 0; line < BLOCK; line += 16) __builtin_prefetch(pixel + line);
#endif
}

inline int64_t element_index(const Scan& scan, int64_t image, Channels channels) {
    return image * scan.pixels() * scan.channels + channels.first;
}

// Copies the pixels of a chunk from a tensor like x to a plane, zero in channels that do not exist.
inline void read_chunk(const Scan& scan, const void* tensor, int64_t image, Channels channels, const Chunk& chunk,
                       float* plane) {
    with_elements(scan.element, tensor, [&](auto* from, auto decode, auto) {
        from += element_index(scan, image, channels);
        for (int p = 0; p < chunk.steps; ++p) {
            const auto* const pixel = from + chunk.pixel[p] * scan.channels;
            float* const to = plane + chunk.plane[p];
            if (channels.count == BLOCK) {
                for (int c = 0; c < BLOCK; ++c) to[c] = decode(pixel[c]);
            } else {
                for (int c = 0; c < BLOCK; ++c) to[c] = c < channels.count ? decode(pixel[c]) : 0.0f;
            }
        }
    });
}

inline void write_chunk(const Scan& scan, const float* plane, void* tensor, int64_t image, Channels channels,
                        const Chunk& chunk) {
    with_elements(scan.element, tensor, [&](auto* to, auto, auto encode) {
        to += element_index(scan, image, channels);
        for (int p = 0; p < chunk.steps; ++p) {
            auto* const pixel = to + chunk.pixel[p] * scan.channels;
            const float* const from = plane + chunk.plane[p];
            if (channels.count == BLOCK) {
                for (int c = 0; c < BLOCK; ++c) pixel[c] = encode(from[c]);
            } else {
                for (int c = 0; c < channels.count; ++c) pixel[c] = encode(from[c]);
            }
        }
    });
}

// The projections in the order of the walks, (B, K, L, P): every block of channels reads them from front to back.
inline int64_t walked_size(const Scan& scan) { return scan.batch * scan.routes * scan.pixels() * scan.per_route(); }
inline int64_t walked_index(const Scan& scan, int64_t image, int64_t route, int64_t chunk) {
    return ((image * scan.routes + route) * scan.pixels() + chunk * CHUNK) * scan.per_route();
}

inline void read_proj_chunk(const Scan& scan, int64_t image, int64_t route, int64_t index, float* walked) {
    const int64_t per_route = scan.per_route(), stride = scan.routes * per_route;
    float* to = walked + walked_index(scan, image, route, index);
    Chunk chunk;
    Walk(scan, scan.codes[route]).chunk(index, chunk);
    with_elements(scan.element, scan.proj, [&](auto* from, auto decode, auto) {
        from += image * scan.pixels() * stride + route * per_route;
        for (int p = 0; p < chunk.steps; ++p, to += per_route)
            for (int64_t i = 0; i < per_route; ++i) to[i] = decode(from[chunk.pixel[p] * stride + i]);
    });
}

// Writes the gradient of the projections: the sum of `slices` arrays of the size of `walked`, in this order.
inline void write_grad_proj_chunk(const Scan& scan, int64_t image, int64_t route, int64_t index, const float* walked) {
    const int64_t per_route = scan.per_route(), stride = scan.routes * per_route, size = walked_size(scan);
    const float* from = walked + walked_index(scan, image, route, index);
    Chunk chunk;
    Walk(scan, scan.codes[route]).chunk(index, chunk);
    with_elements(scan.element, scan.grad_proj, [&](auto* to, auto, auto encode) {
        to += image * scan.pixels() * stride + route * per_route;
        for (int p = 0; p < chunk.steps; ++p, from += per_route)
            for (int64_t i = 0; i < per_route; ++i) {
                float total = from[i];
                for (int64_t slice = 1; slice < scan.slices; ++slice) total += from[slice * size + i];
                to[chunk.pixel[p] * stride + i] = encode(total);
            }
    });
}

}  // namespace
