// How a call's workspace is divided: what all units share, then a piece for each thread.
#pragma once

#include "common.h"
#include "planes.h"
#include "scan.h"
#include "simd.h"

namespace {

// The parameters of one route for a block of channels, channels innermost, zero where the block is not full.
struct Parameters : Space {
    int64_t padded_rank;
    float* weight;        // (R, BLOCK), times log2(e)
    float* weight_rows;   // (BLOCK, padded_rank), for backward
    float* bias;          // (BLOCK,), times log2(e)
    float* A;             // (N, BLOCK)
    float* skip;          // (BLOCK,), the routes' D together

    Parameters(const Scan& scan, float* memory)
        : Space{memory},
          padded_rank(up(scan.rank, WIDTH)),
          weight(take(scan.rank * BLOCK)),
          weight_rows(take(scan.backward() ? BLOCK * padded_rank : 0)),
          bias(take(BLOCK)),
          A(take(scan.state * BLOCK)),
          skip(take(BLOCK)) {}

    void read(const Scan& scan, int64_t route, Channels channels) const {
        const int64_t rank = scan.rank, state = scan.state;
        zero(memory, used);
        for (int64_t c = 0; c < channels.count; ++c) {
            const int64_t at = route * scan.channels + channels.first + c;
            for (int64_t r = 0; r < rank; ++r) weight[r * BLOCK + c] = scan.dt_weight[at * rank + r] * LOG2E;
            for (int64_t r = 0; scan.backward() && r < rank; ++r)
                weight_rows[c * padded_rank + r] = scan.dt_weight[at * rank + r];
            for (int64_t n = 0; n < state; ++n) A[n * BLOCK + c] = scan.A[at * state + n];
            bias[c] = scan.dt_bias[at] * LOG2E;
            for (int64_t k = 0; scan.D && k < scan.routes; ++k)
                skip[c] += scan.D[k * scan.channels + channels.first + c];
        }
    }
};

// Gradients of the parameters of one route and block of channels, summed over the images of a group.
struct Sums : Space {
    float *weight, *bias, *A;    // (R, BLOCK), (BLOCK,), (N, BLOCK)
    float* D;                    // (BLOCK,), in the sums of route 0 only: it is the same for all routes

    Sums(const Scan& scan, float* memory)
        : Space{memory},
          weight(take(scan.rank * BLOCK)),
          bias(take(BLOCK)),
          A(take(scan.state * BLOCK)),
          D(take(BLOCK)) {}

    void add(const Sums& other) const {
        for (int64_t i = 0; i < used; ++i) memory[i] += other.memory[i];
    }
    void write(const Scan& scan, int64_t route, Channels channels) const {
        for (int64_t c = 0; c < channels.count; ++c) {
            const int64_t at = route * scan.channels + channels.first + c;
            for (int64_t r = 0; r < scan.rank; ++r) scan.grad_dt_weight[at * scan.rank + r] = weight[r * BLOCK + c];
            for (int64_t n = 0; n < scan.state; ++n) scan.grad_A[at * scan.state + n] = A[n * BLOCK + c] * LN2;
            scan.grad_dt_bias[at] = bias[c];
            for (int64_t k = 0; scan.D && route == 0 && k < scan.routes; ++k)
                scan.grad_D[k * scan.channels + channels.first + c] = D[c];
        }
    }
};

// What all units share.
struct Shared : Space {
    float* parameters;    // of every route and block of channels
    float* proj;          // in the order of the walks
    float* grad_proj;     // likewise, for every slice
    float* sums;          // of every group, route and block of channels

    explicit Shared(const Scan& scan) : Space{scan.workspace} {
        const int64_t routes_blocks = scan.routes * scan.blocks();
        parameters = take(routes_blocks * Parameters(scan, nullptr).used);
        proj = take(walked_size(scan) + 8 * scan.per_route());
        grad_proj = take(scan.backward() ? scan.slices * walked_size(scan) : 0);
        sums = take(scan.backward() ? scan.groups * routes_blocks * Sums(scan, nullptr).used : 0);
    }
    Parameters parameters_of(const Scan& scan, int64_t route, Channels channels) const {
        const int64_t index = route * scan.blocks() + channels.first / BLOCK;
        return Parameters(scan, parameters + index * Parameters(scan, nullptr).used);
    }
    Sums sums_of(const Scan& scan, int64_t group, int64_t route, Channels channels) const {
        const int64_t index = (group * scan.routes + route) * scan.blocks() + channels.first / BLOCK;
        return Sums(scan, sums + index * Sums(scan, nullptr).used);
    }
};

// What a thread needs to work on one unit.
struct ForwardSpace : Space {
    float *d, *h, *x, *y;

    ForwardSpace(const Scan& scan, float* memory) : Space{memory} {
        d = take((CHUNK + 8) * BLOCK);
        h = take(scan.state * BLOCK);
        x = take(plane_size(scan));
        y = take(plane_size(scan));
    }
};

struct BackwardSpace : Space {
    float *d, *slope, *decay, *h, *adjoint, *grad_proj, *x, *grad_y, *grad_x;

    BackwardSpace(const Scan& scan, float* memory) : Space{memory} {
        const int64_t tile = (CHUNK + 8) * BLOCK, states = scan.state * BLOCK;
        d = take(tile);
        slope = take(tile);                                     // derivative of softplus, then the gradient of v
        decay = take(CHUNK * states);                           // (CHUNK, N, BLOCK)
        h = take((CHUNK + 1) * states);                         // before the chunk, then after each step
        adjoint = take(states);                                 // gradient that later steps give to the state
        grad_proj = take((CHUNK + 8) * grad_proj_row(scan));    // of dt_low, padded, then of B and C
        x = take(plane_size(scan));
        grad_y = take(plane_size(scan));
        grad_x = take(plane_size(scan));
    }
    static int64_t grad_proj_row(const Scan& scan) { return up(scan.rank, WIDTH) + 2 * scan.state; }
};

}  // namespace
