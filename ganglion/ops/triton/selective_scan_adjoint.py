"""The backward kernel of the 1-D scan. Layout, units, names and shape letters as in `selective_scan_kernels`.

With g_t the gradient of h_t, q_t = a_t * g_t that of h_{t-1} and c_t = C_t * grad_y_t,

    g_t = c_t + a_{t+1} * g_{t+1}

runs against the steps. A program goes through its segment chunk by chunk from the end. In a chunk it first walks
forwards from the recorded state and notes the states before each tile; if y is gated it has y then, and with it the
gradient of the gate. Then it takes the tiles in reverse, where it computes the step sizes and the states again and
scans for g. What it carries of a state from tile to tile lies in memory of its own, in rows of BLOCK_D numbers.

B and C have gradients that are sums over the channels of a group. A program adds up those of its blocks of channels
one after another in memory of its own; what programs found is summed at the end, so that every run gives the same bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .adjoint import compose_adjoint, shift
from .kernels import LN2, backwards, by_channel, compose, row, row_of
from .selective_scan_kernels import (
    begin,
    begin_weights,
    lanes,
    load_tile,
    load_weight,
    locate,
    step_sizes,
    steps,
    store_tile,
    strides,
)


@triton.jit
def add_to_row(here, mask, b_x):
    """Adds the sum over the steps of a tile (T, B) to a row."""
    tl.store(here, tl.load(here, mask=mask, other=0.0) + tl.sum(b_x, 0), mask=mask)


@triton.jit
def store_sums(p_x, i_t, o_t, m_t, b_x, again, AGAIN: tl.constexpr, PRECISION: tl.constexpr):
    """Stores the sums over the channels of a tile (T, B) to step i_t on, or adds to what is there if AGAIN and again.

    As a product of matrices, which takes a fraction of the instructions of a reduction across lanes.
    """
    o_8 = tl.arange(0, 8)[None, :]
    b_ones = tl.full([b_x.shape[1], 8], 1.0, tl.float32)
    if PRECISION == "tf32x3":
        # Two products do, as the ones have no lower bits.
        b_upper = (b_x.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
        b_sum = tl.dot(b_upper, b_ones, input_precision="tf32")
        b_sum = tl.dot(b_x - b_upper, b_ones, b_sum, input_precision="tf32")
    else:
        b_sum = tl.dot(b_x, b_ones, input_precision=PRECISION)
    here = p_x + i_t + (o_t[:, None] + 0 * o_8)
    mask = m_t[:, None] & (o_8 == 0)
    if AGAIN:
        b_sum += tl.load(here, mask=mask & again, other=0.0)
    tl.store(here, b_sum, mask=mask)


@triton.jit
def backward_kernel(
    grad_y,  # (B, D, L)
    u,  # (B, D, L)
    delta,  # (B, D, L)
    B,  # (B, G, N, L), or constant (N, D)
    C,  # likewise
    z,  # (B, D, L), read if HAS_GATE
    A,  # (N, D), and after it the bias (D,) if HAS_BIAS, the skip (D,) if HAS_SKIP
    carry,  # (B, chunks, N, D)
    scratch,  # (programs, N, ROWS, BLOCK_D)
    adjoint,  # in and out (B, segments, N, D): the gradient of the state after and before a segment
    grad_u,  # out (B, D, L)
    grad_delta,  # out (B, D, L)
    grad_z,  # out (B, D, L)
    grad_A,  # out (B, segments, N, D)
    grad_B,  # out (slices, B, G, N, L), or (B, segments, N, D) if constant
    grad_C,  # likewise
    grad_rows,  # out (B, segments, 2, D): of skip, of bias
    s_grad_y,
    s_u,
    s_delta,
    s_B,
    s_C,
    s_z,
    s_out,  # of grad_u, grad_delta, grad_z
    batch,
    length,
    channels,
    groups,
    states,
    slices,
    segments,
    segment_steps,
    chunks,
    WALKS: tl.constexpr,
    HAS_GATE: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    CONSTANT_B: tl.constexpr,
    CONSTANT_C: tl.constexpr,
    T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHUNK: tl.constexpr,
    COEFFICIENTS: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN_D: tl.constexpr,
    EVEN: tl.constexpr,
    WIDE: tl.constexpr,
    ALIKE: tl.constexpr,
):
    # Of a state: what it is before each tile of a chunk, q, and the sums of its gradients of A, B and C.
    tiles: tl.constexpr = CHUNK // T
    Q: tl.constexpr = tiles
    SUM_A: tl.constexpr = tiles + 1
    SUM_B: tl.constexpr = tiles + 2
    SUM_C: tl.constexpr = tiles + 3
    ROWS: tl.constexpr = tiles + 4
    s_grad_y, s_delta = strides(s_grad_y, s_u, ALIKE), strides(s_delta, s_u, ALIKE)
    s_z, s_out = strides(s_z, s_u, ALIKE), strides(s_out, s_u, ALIKE)
    group_channels = channels // groups
    i_b, i_g, i_slice, i_s = locate(groups, slices, segments)
    o_t = steps(T, WIDE)
    o_partial = ((i_slice * batch + i_b) * groups + i_g) * states * length
    p_scratch = scratch + tl.cast(tl.program_id(0), tl.int64) * states * (ROWS * BLOCK_D)
    o_lane = tl.arange(0, BLOCK_D)
    all_lanes = o_lane >= 0
    b_zero = tl.zeros([BLOCK_D], tl.float32)
    i_first = i_s * segment_steps // CHUNK
    chunks_here = tl.cdiv(tl.minimum(segment_steps, length - i_first * CHUNK), CHUNK)
    for i_walk in range(WALKS):
        i_block = i_slice * WALKS + i_walk
        o_d, m_d = lanes(i_block, group_channels, BLOCK_D, EVEN_D, WIDE)
        i_d = i_g * group_channels + i_block * BLOCK_D
        p_A = A + i_d
        p_grad_y = begin(grad_y, s_grad_y, i_b, i_d)
        p_u = begin(u, s_u, i_b, i_d)
        p_delta = begin(delta, s_delta, i_b, i_d)
        p_z = begin(z, s_z, i_b, i_d)
        p_B = begin_weights(B, s_B, i_b, i_g, i_d, CONSTANT_B)
        p_C = begin_weights(C, s_C, i_b, i_g, i_d, CONSTANT_C)
        p_grad_u = begin(grad_u, s_out, i_b, i_d)
        p_grad_delta = begin(grad_delta, s_out, i_b, i_d)
        p_grad_z = begin(grad_z, s_out, i_b, i_d)
        o_part = (i_b * segments + i_s) * states * channels + i_d
        p_sums = grad_rows + ((i_b * segments + i_s) * 2 * channels + i_d)
        for n in range(states):
            p_rows = p_scratch + n * (ROWS * BLOCK_D)
            b_q = tl.load(adjoint + o_part + n * channels + o_d, mask=m_d, other=0.0)
            tl.store(p_rows + Q * BLOCK_D + o_lane, b_q)
            for k in tl.static_range(SUM_A, ROWS):
                tl.store(p_rows + k * BLOCK_D + o_lane, b_zero)
        tl.store(p_sums + o_d, b_zero, mask=m_d)
        tl.store(p_sums + channels + o_d, b_zero, mask=m_d)
        tl.debug_barrier()
        for i_chunk in range(chunks_here):
            i_c = i_first + chunks_here - 1 - i_chunk
            p_carry = carry + ((i_b * chunks + i_c) * states * channels + i_d)
            tiles_here = tl.minimum(tiles, tl.cdiv(length - i_c * CHUNK, T))
            for j in range(tiles_here):
                i_t = i_c * CHUNK + j * T
                m_t = (o_t < length - i_t) | EVEN
                mask = m_t[:, None] & m_d[None, :]
                b_u = load_tile(p_u, s_u, i_t, o_t, o_d, mask).to(tl.float32)
                b_v = load_tile(p_delta, s_delta, i_t, o_t, o_d, mask).to(tl.float32)
                if HAS_BIAS:
                    b_v += row_of(p_A + states * channels, o_d, m_d)
                b_d = by_channel(step_sizes(b_v, mask, SOFTPLUS, COEFFICIENTS, EVEN))
                b_dx = by_channel(b_d * LN2 * b_u)
                b_y = tl.zeros([T, BLOCK_D], tl.float32)
                if HAS_GATE and HAS_SKIP:
                    b_y += row_of(p_A + (states + HAS_BIAS) * channels, o_d, m_d) * b_u
                for n in range(states):
                    b_A = row_of(p_A + n * channels, o_d, m_d)
                    p_rows = p_scratch + n * (ROWS * BLOCK_D)
                    if j == 0:
                        b_start = row_of(p_carry + n * channels, o_d, m_d)
                        tl.store(p_rows + o_lane[None, :], b_start)
                    b_enter = row_of(p_rows + j * BLOCK_D, o_lane, all_lanes)
                    b_B = load_weight(p_B, s_B, n, channels, i_t, o_t, m_t, o_d, m_d, CONSTANT_B)
                    b_a = tl.exp2(b_d * b_A)
                    b_b = b_dx * b_B
                    b_b = tl.where((o_t == 0)[:, None], b_a * b_enter + b_b, b_b)
                    b_decay, b_h = tl.associative_scan((b_a, b_b), 0, compose)
                    tl.store(p_rows + (j + 1) * BLOCK_D + o_lane, row(b_h, T - 1, T), mask=j + 1 < tiles_here)
                    if HAS_GATE:
                        b_y += b_h * load_weight(p_C, s_C, n, channels, i_t, o_t, m_t, o_d, m_d, CONSTANT_C)
                if HAS_GATE:
                    b_z = load_tile(p_z, s_z, i_t, o_t, o_d, mask).to(tl.float32)
                    b_slope = tl.sigmoid(b_z)
                    b_y *= load_tile(p_grad_y, s_grad_y, i_t, o_t, o_d, mask).to(tl.float32)
                    b_y *= b_slope * (1.0 + b_z * (1.0 - b_slope))
                    store_tile(p_grad_z, s_out, i_t, o_t, o_d, mask, b_y)
                # What follows reads the rows, whichever thread wrote them.
                tl.debug_barrier()
            for i in range(tiles_here):
                j = tiles_here - 1 - i
                i_t = i_c * CHUNK + j * T
                m_t = (o_t < length - i_t) | EVEN
                mask = m_t[:, None] & m_d[None, :]
                b_u = load_tile(p_u, s_u, i_t, o_t, o_d, mask).to(tl.float32)
                b_v = load_tile(p_delta, s_delta, i_t, o_t, o_d, mask).to(tl.float32)
                b_g_y = load_tile(p_grad_y, s_grad_y, i_t, o_t, o_d, mask).to(tl.float32)
                if HAS_GATE:
                    b_z = load_tile(p_z, s_z, i_t, o_t, o_d, mask).to(tl.float32)
                    b_g_y *= b_z * tl.sigmoid(b_z)
                if HAS_BIAS:
                    b_v += row_of(p_A + states * channels, o_d, m_d)
                b_g_y = by_channel(b_g_y)
                b_d = by_channel(step_sizes(b_v, mask, SOFTPLUS, COEFFICIENTS, EVEN))
                b_dx = by_channel(b_d * LN2 * b_u)
                b_g_d = tl.zeros([T, BLOCK_D], tl.float32)  # by way of the decay
                b_g_dx = tl.zeros([T, BLOCK_D], tl.float32)
                for n in range(states):
                    b_A = row_of(p_A + n * channels, o_d, m_d)
                    p_rows = p_scratch + n * (ROWS * BLOCK_D)
                    b_enter = row_of(p_rows + j * BLOCK_D, o_lane, all_lanes)
                    b_q = row_of(p_rows + Q * BLOCK_D, o_lane, all_lanes)
                    b_B = load_weight(p_B, s_B, n, channels, i_t, o_t, m_t, o_d, m_d, CONSTANT_B)
                    b_a = tl.exp2(b_d * b_A)
                    b_b = b_dx * b_B
                    b_b = tl.where((o_t == 0)[:, None], b_a * b_enter + b_b, b_b)
                    b_decay, b_h = tl.associative_scan((b_a, b_b), 0, compose)
                    b_single = tl.full([T, BLOCK_D], 1, tl.int32)
                    b_first = tl.broadcast_to(b_enter, [T, BLOCK_D])
                    b_last, b_before, b_single = tl.associative_scan((b_h, b_first, b_single), 0, shift)
                    b_g_C = b_g_y * b_h
                    if CONSTANT_C:
                        add_to_row(p_rows + SUM_C * BLOCK_D + o_lane, all_lanes, b_g_C)
                    else:
                        if not EVEN_D:  # zero times an infinite B is NaN in a channel that does not exist
                            b_g_C = tl.where(m_d[None, :], b_g_C, 0.0)
                        p_g_C = grad_C + (o_partial + tl.cast(n, tl.int64) * length)
                        store_sums(p_g_C, i_t, o_t, m_t, b_g_C, i_walk > 0, WALKS > 1, PRECISION)
                    b_C = load_weight(p_C, s_C, n, channels, i_t, o_t, m_t, o_d, m_d, CONSTANT_C)
                    b_c = b_g_y * b_C
                    b_c = tl.where((o_t == T - 1)[:, None], b_c + b_q, b_c)
                    b_ones = tl.full([T, BLOCK_D], 1.0, tl.float32)
                    b_decay, b_others, b_g = tl.associative_scan(
                        (backwards(b_a), b_ones, backwards(b_c)), 0, compose_adjoint
                    )
                    b_g = backwards(b_g)
                    b_q = b_a * b_g
                    tl.store(p_rows + Q * BLOCK_D + o_lane, row(b_q, 0, T))
                    b_past = b_q * b_before
                    if not EVEN:  # zero times an infinite state is NaN
                        b_past = tl.where(m_t[:, None], b_past, 0.0)
                    add_to_row(p_rows + SUM_A * BLOCK_D + o_lane, all_lanes, b_past * b_d)
                    b_g_d += b_past * b_A
                    b_B = load_weight(p_B, s_B, n, channels, i_t, o_t, m_t, o_d, m_d, CONSTANT_B)
                    b_g_dx += b_g * b_B
                    b_g_B = b_g * b_dx
                    if CONSTANT_B:
                        add_to_row(p_rows + SUM_B * BLOCK_D + o_lane, all_lanes, b_g_B)
                    else:
                        if not EVEN_D:
                            b_g_B = tl.where(m_d[None, :], b_g_B, 0.0)
                        p_g_B = grad_B + (o_partial + tl.cast(n, tl.int64) * length)
                        store_sums(p_g_B, i_t, o_t, m_t, b_g_B, i_walk > 0, WALKS > 1, PRECISION)
                # Fetched again, as registers are few.
                b_u = load_tile(p_u, s_u, i_t, o_t, o_d, mask).to(tl.float32)
                b_g_u = b_g_dx * (b_d * LN2)
                b_g_v = b_g_d + b_g_dx * b_u
                if HAS_SKIP:
                    b_skip = row_of(p_A + (states + HAS_BIAS) * channels, o_d, m_d)
                    b_g_u += b_skip * b_g_y
                    add_to_row(p_sums + o_d, m_d, b_g_y * b_u)
                store_tile(p_grad_u, s_out, i_t, o_t, o_d, mask, b_g_u)
                if SOFTPLUS:
                    b_v = load_tile(p_delta, s_delta, i_t, o_t, o_d, mask).to(tl.float32)
                    if HAS_BIAS:
                        b_v += row_of(p_A + states * channels, o_d, m_d)
                    b_g_v *= tl.sigmoid(b_v)
                if not EVEN:
                    b_g_v = tl.where(mask, b_g_v, 0.0)
                add_to_row(p_sums + channels + o_d, m_d, b_g_v)
                store_tile(p_grad_delta, s_out, i_t, o_t, o_d, mask, b_g_v)
                tl.debug_barrier()
        for n in range(states):
            p_rows = p_scratch + n * (ROWS * BLOCK_D) + o_lane
            o_row = o_part + n * channels + o_d
            tl.store(adjoint + o_row, tl.load(p_rows + Q * BLOCK_D), mask=m_d)
            tl.store(grad_A + o_row, tl.load(p_rows + SUM_A * BLOCK_D), mask=m_d)
            if CONSTANT_B:
                tl.store(grad_B + o_row, tl.load(p_rows + SUM_B * BLOCK_D), mask=m_d)
            if CONSTANT_C:
                tl.store(grad_C + o_row, tl.load(p_rows + SUM_C * BLOCK_D), mask=m_d)
