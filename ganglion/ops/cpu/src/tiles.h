// Blocks of channels of a sequence, turned so that channels are the vector axis.
#pragma once

#include "common.h"
#include "elements.h"
#include "selective_scan.h"
#include "simd.h"

namespace {

// Channels of one group of an image that are walked together, one to a lane. Lanes from `count` on hold no channel;
// what is read into them is zero.
struct Block {
    int64_t image, group, channel;
    int count;

    Block(const SelectiveScan& scan, int64_t image, int64_t group, int64_t index)
        : image(image),
          group(group),
          channel(group * scan.group_channels() + index * WIDTH),
          count((int)smaller(WIDTH, scan.group_channels() - index * WIDTH)) {}
};

inline int64_t blocks_of_group(const SelectiveScan& scan) { return (scan.group_channels() + WIDTH - 1) / WIDTH; }

// A tile holds some steps of a block, (CHUNK, WIDTH).
constexpr int TILE = CHUNK * WIDTH;

// Turns rows into columns; there are multiples of WIDTH of both.
inline void turn(const float* from, int64_t from_stride, float* to, int64_t to_stride, int rows, int columns) {
    for (int i = 0; i < rows; i += WIDTH)
        for (int j = 0; j < columns; j += WIDTH) {
            Vec block[WIDTH];
            SCAN_UNROLL for (int k = 0; k < WIDTH; ++k) block[k] = load(from + (i + k) * from_stride + j);
            transpose(block);
            SCAN_UNROLL for (int k = 0; k < WIDTH; ++k) store(to + (j + k) * to_stride + i, block[k]);
        }
}

// How many of a block's steps can be turned where they lie, rather than in a copy that is float32 and has all rows.
inline int turned_in_place(const Sequence& sequence, const Block& block, int steps) {
    const bool whole = sequence.element == FLOAT32 && sequence.step == 1 && block.count == WIDTH;
    return whole ? steps / WIDTH * WIDTH : 0;
}

// Reads steps first, ..., first + steps - 1; the rest of the last vectors is zero. rows: memory for a tile.
inline void read_tile(const Sequence& sequence, const Block& block, int64_t first, int steps, float* rows,
                      float* tile) {
    with_elements(sequence.element, sequence.data, [&](auto* from, auto decode, auto) {
        from += block.image * sequence.batch + block.channel * sequence.channel + first * sequence.step;
        const int padded = (int)up(steps, WIDTH);
        if (sequence.channel == 1 && sequence.step != 1) {    // channels lie side by side already
            for (int t = 0; t < steps; ++t, from += sequence.step, tile += WIDTH)
                for (int c = 0; c < WIDTH; ++c) tile[c] = c < block.count ? decode(from[c]) : 0.0f;
            zero(tile, (padded - steps) * WIDTH);
            return;
        }
        const int done = turned_in_place(sequence, block, steps);
        turn((const float*)from, sequence.channel, tile, WIDTH, done ? WIDTH : 0, done);
        if (done == steps) return;
        for (int c = 0; c < WIDTH; ++c, from += sequence.channel) {
            float* const row = rows + c * CHUNK;
            const int there = c < block.count ? steps : 0;
            if (sequence.step == 1)
                for (int t = done; t < there; ++t) row[t] = decode(from[t]);
            else
                for (int t = done; t < there; ++t) row[t] = decode(from[t * sequence.step]);
            zero(row + there, padded - there);
        }
        turn(rows + done, CHUNK, tile + done * WIDTH, WIDTH, WIDTH, padded - done);
    });
}

// Writes them to a sequence whose steps follow each other.
inline void write_tile(const float* tile, const Sequence& sequence, const Block& block, int64_t first, int steps,
                       float* rows) {
    with_elements(sequence.element, sequence.data, [&](auto* to, auto, auto encode) {
        to += block.image * sequence.batch + block.channel * sequence.channel + first;
        const int done = turned_in_place(sequence, block, steps);
        turn(tile, WIDTH, (float*)to, sequence.channel, done, WIDTH);
        if (done == steps) return;
        turn(tile + done * WIDTH, WIDTH, rows + done, CHUNK, (int)up(steps, WIDTH) - done, WIDTH);
        for (int c = 0; c < block.count; ++c, to += sequence.channel)
            for (int t = done; t < steps; ++t) to[t] = encode(rows[c * CHUNK + t]);
    });
}

// Asks for a cache line of each row of a block from step `first` on, a row at a time while other steps are computed:
// rows lie far from each other, which processors do not foresee, and all at once they would be waited for.
class Ahead {
    uintptr_t line;
    int64_t row;    // bytes to the next; zero if there is nothing to ask for

public:
    Ahead(const SelectiveScan& scan, const Sequence& sequence, const Block& block, int64_t first) {
        const int64_t size = sequence.element == FLOAT32 ? 4 : 2;
        const bool there = sequence.data && sequence.step == 1 && first >= 0 && first < scan.length;
        const int64_t index = block.image * sequence.batch + block.channel * sequence.channel + first;
        line = there ? (uintptr_t)sequence.data + index * size : (uintptr_t)&scan;
        row = there ? sequence.channel * size : 0;
    }
    SCAN_INLINE void operator()([[maybe_unused]] int index) {
#if defined(__GNUC__) || defined(__clang__)
        if (index < WIDTH) __builtin_prefetch((const void*)line);
        line += row;
#endif
    }
};

// (count, N) without gaps to (N, WIDTH), zero in lanes without a channel; null is zero.
inline void read_lanes(const float* from, int64_t state, int count, float* to) {
    zero(to, state * WIDTH);
    for (int c = 0; from && c < count; ++c)
        for (int64_t n = 0; n < state; ++n) to[n * WIDTH + c] = from[c * state + n];
}
inline void write_lanes(const float* from, int64_t state, int count, float* to) {
    for (int c = 0; to && c < count; ++c)
        for (int64_t n = 0; n < state; ++n) to[c * state + n] = from[n * WIDTH + c];
}

// The rows of B or C that a block meets from a step on: of each state one number for all channels a step, or, if it is
// constant, one vector for all steps.
struct Rows {
    const float* first;
    int64_t stride;
    const float* operator[](int64_t n) const { return first + n * stride; }
};

}  // namespace
