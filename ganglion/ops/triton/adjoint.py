"""The backward kernel. Layouts, units, names and shapes are those of `kernels`.

Let c_t = C_t * dy_t, with dy the gradient of y. The gradient g_t of the state h_t is a recurrence against the walk,

    g_t = c_t + a_{t+1} * g_{t+1},        and q_t = a_t * g_t is the gradient of h_{t-1}.

A program takes the chunks of its segment from the last to the first. Within a chunk it walks forwards once, from the
recorded state, to find the state before each tile. Then it takes the tiles from the last to the first: it computes step
sizes and states again, and scans for g. b_dx, b_dz, ... are gradients of b_x, b_z, ...

Registers are scarce: a lane holds ten values for each of its 16 steps, the gradients of the weights and the addresses
of eight tensors. So some loads are repeated where a value is needed again, and results are stored once they are known.
benchmarks/gpu_resources.py counts registers; a test holds the bound.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .kernels import (
    LN2,
    LOG2E,
    back,
    backwards,
    compose,
    load_low,
    load_states,
    load_tile,
    load_weights,
    locate,
    onwards,
    pixels,
    row,
    row_of,
    softplus,
    state_at,
    step_logit,
    walk,
    with_row,
)


@triton.jit
def compose_adjoint(a0, p0, g0, a1, p1, g1):
    """Joins a later stretch (0) to an earlier one (1), as (decay of its first step, product of its other decays,
    g of its first step). So the scan yields g itself, without shifting the decays by one step."""
    m = p1 * a0
    return a1, m * p0, tl.fma(m, g0, g1)


@triton.jit
def shift(x0, before0, single0, x1, before1, single1):
    """Joins two stretches, as (value of the last step, value before it, whether it is but one step)."""
    return x1, tl.where(single1 != 0, x0, before1), 0 * single1


@triton.jit
def sum_beside(beside0, x0, beside1, x1):
    """The sum of x, in a scan with another tile so that it is in its layout."""
    return beside1, x0 + x1


@triton.jit
def sum_into(b_sums, b_x, column, PRECISION: tl.constexpr):
    """One column replaced by the sum over channels. As a product of matrices, which takes a fraction of the
    instructions of a reduction across lanes."""
    B: tl.constexpr = b_x.shape[1]
    S: tl.constexpr = b_sums.shape[1]
    b_sum = tl.dot(b_x, tl.full([B, S], 1.0, tl.float32), input_precision=PRECISION)
    return tl.where(tl.arange(0, S)[None, :] == column, b_sum, b_sums)


@triton.jit
def backward_kernel(
    grad_y,  # (B, L, D)
    x,  # (B, L, D)
    proj,  # (B, L, K * (R + 2 * N))
    dt_weight,  # (K, D, R)
    dt_bias,  # (K, D)
    A,  # (K, D, N)
    skip,  # (K, D), read if HAS_SKIP
    carry,  # (B, K, chunks, N, D)
    ends,  # read if segments > 1, see segment_ends_kernel
    grad_x,  # out (K, B, L, D)
    grad_proj,  # out (D / BLOCK_D, B, L, K * (R + 2 * N))
    grad_weight,  # out (B, segments, K, D, RANK): R padded to whole pieces
    grad_rows,  # out (B, segments, K, N + 2, D): of dt_bias, of skip (route 0 for all), of the columns of A
    batch,
    height,
    width,
    channels,
    segments,
    segment_steps,
    chunks,
    ROUTES: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    N: tl.constexpr,
    N_PAD: tl.constexpr,
    R: tl.constexpr,
    PIECE: tl.constexpr,
    T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHUNK: tl.constexpr,
    PRECISION: tl.constexpr,
    COEFFICIENTS: tl.constexpr,
    WIDE: tl.constexpr,
    EVEN: tl.constexpr,
    RESTART: tl.constexpr,
):
    K: tl.constexpr = len(ROUTES)
    PIECES: tl.constexpr = (R + PIECE - 1) // PIECE
    RANK: tl.constexpr = PIECES * PIECE
    WIDTH_P: tl.constexpr = K * (R + 2 * N)
    TILES: tl.constexpr = CHUNK // T
    # More is fetched again where the gradients of the weights take many registers.
    SCARCE: tl.constexpr = PIECES > 1
    length = height * width
    STATES: tl.constexpr = 8 if N <= 4 else 2 * N_PAD
    i_b, i_d, i_k, i_s = locate(batch, channels, K, segments, BLOCK_D)
    first = i_d * BLOCK_D
    o_d = tl.arange(0, BLOCK_D)
    m_d = (o_d < channels - first) | EVEN
    o_n = tl.arange(0, N_PAD)
    o_s = tl.arange(0, STATES)
    o_t = tl.arange(0, T)[:, None]
    route, restart = walk(i_k, height, width, ROUTES)
    line = route[0]
    x += i_b * length * channels + first
    grad_y += i_b * length * channels + first
    grad_x += (i_k * batch + i_b) * length * channels + first
    proj += i_b * length * WIDTH_P + i_k * (R + 2 * N)
    grad_proj += (i_d * batch + i_b) * length * WIDTH_P + i_k * (R + 2 * N)
    A += (i_k * channels + first) * N
    carry += (i_b * K + i_k) * chunks * N * channels + first
    ends += (i_b * K + i_k) * segments * 2 * N * channels + first
    i_part = (i_b * segments + i_s) * K + i_k
    grad_weight += (i_part * channels + first) * RANK
    grad_rows += i_part * (N + 2) * channels + first
    b_w = load_weights(dt_weight + (i_k * channels + first) * R, o_d, m_d, R, PIECE)
    b_q = tl.zeros([N_PAD, BLOCK_D], tl.float32)
    if i_s < segments - 1:
        for n in range(N):
            b_enters = state_at(ends, n, segments - 1, i_s, channels, m_d, N, BLOCK_D, -1)
            b_q = with_row(b_q, n, b_enters, N_PAD)
    b_dw = (tl.zeros([BLOCK_D, PIECE], tl.float32),) * PIECES
    b_dbias = tl.zeros([BLOCK_D], tl.float32)
    b_dskip = tl.zeros([BLOCK_D], tl.float32)
    b_dA = tl.zeros([N_PAD, BLOCK_D], tl.float32)
    begin = i_s * segment_steps // CHUNK
    chunks_here = tl.cdiv(tl.minimum(segment_steps, length - begin * CHUNK), CHUNK)
    # Where the tile is that comes before the first of the chunk in hand.
    steps_before = (begin + chunks_here) * CHUNK - T
    i_line = steps_before // line
    i_step = steps_before - i_line * line
    carry += (begin + chunks_here).to(tl.int64) * N * channels
    for i_back in range(chunks_here):
        i_c = begin + chunks_here - 1 - i_back
        carry -= N * channels
        i_line, i_step = back(i_line, i_step, CHUNK - T, line)
        # Row i_t * N_PAD + n: state n before tile i_t.
        b_states = tl.zeros([TILES * N_PAD, BLOCK_D], tl.float32)
        for n in range(N):
            b_recorded = tl.load(carry + n * channels + o_d, mask=m_d, other=0.0)
            b_states = with_row(b_states, n, b_recorded / LN2, TILES * N_PAD)
        tiles_here = tl.minimum(TILES, tl.cdiv(length - i_c * CHUNK, T))
        i_t = 0
        while i_t < tiles_here - 1:
            o_pixel, m_t, m_begin = pixels(i_line, i_step, route, T, WIDE, EVEN)
            b_low = load_low(proj, o_pixel, m_t, WIDTH_P, R, PIECE)
            b_x = load_tile(x, o_pixel, m_t, o_d, m_d, channels).to(tl.float32)
            b_dt = softplus(
                step_logit(b_low, b_w, row_of(dt_bias + i_k * channels + first, o_d, m_d), T, PRECISION),
                COEFFICIENTS,
            )
            for n in range(N):
                b_a = tl.exp2(b_dt * row_of(A + n, o_d * N, m_d))
                if RESTART:
                    b_a = tl.where((m_begin & restart)[:, None], 0.0, b_a)
                b_B, b_C = load_states(proj, o_pixel, m_t, WIDTH_P, n, R, N, "")
                b_b = b_dt * b_x * b_B
                b_entered = b_a * row(b_states, i_t * N_PAD + n, TILES * N_PAD)[None, :]
                b_b = tl.where(o_t == 0, b_entered + b_b, b_b)
                b_decay, b_h = tl.associative_scan((b_a, b_b), 0, compose)
                b_states = with_row(b_states, (i_t + 1) * N_PAD + n, row(b_h, T - 1, T), TILES * N_PAD)
            i_line, i_step = onwards(i_line, i_step, T, line)
            i_t += 1
        while i_t >= 0:
            o_pixel, m_t, m_begin = pixels(i_line, i_step, route, T, WIDE, EVEN)
            o_x = (o_pixel * channels)[:, None] + o_d[None, :]
            m_x = m_t[:, None] & m_d[None, :]
            b_low = load_low(proj, o_pixel, m_t, WIDTH_P, R, PIECE)
            b_x = tl.load(x + o_x, mask=m_x, other=0.0).to(tl.float32)
            b_dy = tl.load(grad_y + o_x, mask=m_x, other=0.0).to(tl.float32)
            b_dx = tl.zeros([T, BLOCK_D], tl.float32)
            b_z = step_logit(b_low, b_w, row_of(dt_bias + i_k * channels + first, o_d, m_d), T, PRECISION)
            b_dt = softplus(b_z, COEFFICIENTS)
            # The logistic function of z, the derivative of softplus.
            b_slope = tl.exp2(b_z - b_dt)
            b_ddt = tl.zeros([T, BLOCK_D], tl.float32)
            b_dBC = tl.zeros([T, STATES], tl.float32)
            for n in range(N):
                b_A = row_of(A + n, o_d * N, m_d)
                b_a = tl.exp2(b_dt * b_A)
                if RESTART:
                    b_a = tl.where((m_begin & restart)[:, None], 0.0, b_a)
                b_B, b_C = load_states(proj, o_pixel, m_t, WIDTH_P, n, R, N, "evict_last")
                b_xB = b_x * b_B
                b_b = b_dt * b_xB
                b_entering = row(b_states, i_t * N_PAD + n, TILES * N_PAD)[None, :]
                b_b = tl.where(o_t == 0, b_a * b_entering + b_b, b_b)
                b_decay, b_h = tl.associative_scan((b_a, b_b), 0, compose)
                b_singles = tl.full([T, BLOCK_D], 1, tl.int32)
                b_entering_all = tl.broadcast_to(b_entering, [T, BLOCK_D])
                b_last, b_before, b_single = tl.associative_scan((b_h, b_entering_all, b_singles), 0, shift)
                b_dBC = sum_into(b_dBC, b_dy * b_h, N + n, PRECISION)
                # In the middle on purpose: at a branch the compiler has to be done with what comes before.
                if HAS_SKIP:
                    if (i_k == 0) & (n == 0):  # the same for every route
                        b_same, b_sums = tl.associative_scan((b_h, b_dy * b_x), 0, sum_beside)
                        b_dskip += row(b_sums, T - 1, T)
                    if n == 0:
                        b_dx += row_of(skip + i_k * channels + first, o_d, m_d) * b_dy
                if SCARCE:
                    b_B, b_C = load_states(proj, o_pixel, m_t, WIDTH_P, n, R, N, "")
                b_c = b_dy * b_C
                b_c = tl.where(o_t == T - 1, b_c + row(b_q, n, N_PAD)[None, :], b_c)
                b_ones = tl.full([T, BLOCK_D], 1.0, tl.float32)
                b_first, b_others, b_g = tl.associative_scan(
                    (backwards(b_a), b_ones, backwards(b_c)), 0, compose_adjoint
                )
                b_g = backwards(b_g)
                b_a *= b_g
                b_q = with_row(b_q, n, row(b_a, 0, T), N_PAD)
                b_past = b_a * b_before
                b_dA_n = row(b_dA, n, N_PAD) + tl.sum(b_past * b_dt, 0)
                b_dA = with_row(b_dA, n, b_dA_n, N_PAD)
                b_ddt += b_past * (b_A * LN2)
                b_ddt += b_g * b_xB
                b_g *= b_dt
                b_B, b_C = load_states(proj, o_pixel, m_t, WIDTH_P, n, R, N, "evict_first")
                b_dx += b_g * b_B
                b_dBC = sum_into(b_dBC, b_g * b_x, n, PRECISION)
            tl.store(grad_x + o_x, b_dx.to(grad_x.dtype.element_ty), mask=m_x)
            o_column = (o_pixel * WIDTH_P)[:, None]
            tl.store(
                grad_proj + R + o_column + o_s[None, :],
                (b_dBC * tl.where(o_s < N, 1.0, LN2)[None, :]).to(grad_proj.dtype.element_ty),
                mask=m_t[:, None] & (o_s < 2 * N)[None, :],
            )
            b_dz = b_ddt * b_slope
            if SCARCE:
                b_low = load_low(proj, o_pixel, m_t, WIDTH_P, R, PIECE)
            b_dbias += tl.sum(b_dz, 0)
            b_dw_next = ()
            for p in tl.static_range(PIECES):
                b_low_p = b_low[p].to(tl.float32)
                b_dw_p = tl.dot(tl.trans(b_dz), b_low_p, b_dw[p], input_precision=PRECISION)
                b_dw_next = b_dw_next + (b_dw_p,)
                b_dlow = tl.dot(b_dz, tl.trans(b_w[p]), input_precision=PRECISION)
                o_r = tl.arange(0, PIECE) + p * PIECE
                tl.store(
                    grad_proj + o_column + o_r[None, :],
                    b_dlow.to(grad_proj.dtype.element_ty),
                    mask=m_t[:, None] & (o_r < R)[None, :],
                )
            b_dw = b_dw_next
            i_line, i_step = back(i_line, i_step, T, line)
            i_t -= 1
    for p in tl.static_range(PIECES):
        o_r = tl.arange(0, PIECE) + p * PIECE
        o_h = (o_d * RANK)[:, None] + o_r[None, :]
        tl.store(grad_weight + o_h, b_dw[p] * LOG2E, mask=m_d[:, None])
    tl.store(grad_rows + o_d, b_dbias * LOG2E, mask=m_d)
    tl.store(grad_rows + channels + o_d, b_dskip, mask=m_d)
    o_h = (o_n * channels)[:, None] + o_d[None, :]
    m_x = (o_n < N)[:, None] & m_d[None, :]
    tl.store(grad_rows + 2 * channels + o_h, b_dA * LN2, mask=m_x)
