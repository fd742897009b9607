"""The backward kernel. Layout, units and shape letters as in `kernels`.

With g_t the gradient of h_t, q_t = a_t * g_t that of h_{t-1} and c_t = C_t * grad_y_t,

    g_t = c_t + a_{t+1} * g_{t+1}

runs against the walk. A program goes through its segment chunk by chunk from the end. In a chunk it first walks
forwards from the recorded state to find the states before each tile, then takes the tiles in reverse, where it
recomputes the step sizes and the states and scans for g.

Registers are what this kernel is short of: a thread holds ten values of each of its 16 steps, the gradients of the
weights and the addresses of eight tensors. So some loads are repeated where the values are needed again, and results
are stored as soon as they are known. Whether it still fits is counted by benchmarks/gpu_resources.py and tested.
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
def sum_into(sums_TS, x_TB, column, PRECISION: tl.constexpr):
    """One column replaced by the sum over channels. As a product of matrices, which takes a fraction of the
    instructions of a reduction across lanes."""
    B: tl.constexpr = x_TB.shape[1]
    S: tl.constexpr = sums_TS.shape[1]
    sum_TS = tl.dot(x_TB, tl.full([B, S], 1.0, tl.float32), input_precision=PRECISION)
    return tl.where(tl.arange(0, S)[None, :] == column, sum_TS, sums_TS)


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
    grad_proj,  # out (D / BLOCK_D, B, L, K * (R + 2 * N)) float32
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
    n_routes: tl.constexpr = len(ROUTES)
    PIECES: tl.constexpr = (R + PIECE - 1) // PIECE
    RANK: tl.constexpr = PIECES * PIECE
    width_p: tl.constexpr = n_routes * (R + 2 * N)
    tiles: tl.constexpr = CHUNK // T
    # More is fetched again where the gradients of the weights take many registers.
    SCARCE: tl.constexpr = PIECES > (1 if x.dtype.element_ty == tl.float32 else 2)
    length = height * width
    STATES: tl.constexpr = 8 if N <= 4 else 2 * N_PAD
    b, block, k, segment = locate(batch, channels, n_routes, segments, BLOCK_D)
    first = block * BLOCK_D
    d_B = tl.arange(0, BLOCK_D)
    live_B = (d_B < channels - first) | EVEN
    n_N = tl.arange(0, N_PAD)
    s_S = tl.arange(0, STATES)
    t_T1 = tl.arange(0, T)[:, None]
    route, restart = walk(k, height, width, ROUTES)
    line = route[0]
    x += b * length * channels + first
    grad_y += b * length * channels + first
    grad_x += (k * batch + b) * length * channels + first
    proj += b * length * width_p + k * (R + 2 * N)
    grad_proj += (block * batch + b) * length * width_p + k * (R + 2 * N)
    A += (k * channels + first) * N
    carry += (b * n_routes + k) * chunks * N * channels + first
    ends += (b * n_routes + k) * segments * 2 * N * channels + first
    part = (b * segments + segment) * n_routes + k
    grad_weight += (part * channels + first) * RANK
    grad_rows += part * (N + 2) * channels + first
    weights = load_weights(dt_weight + (k * channels + first) * R, d_B, live_B, R, PIECE)
    bias_1B = row_of(dt_bias + k * channels + first, d_B, live_B)
    if HAS_SKIP:
        skip_1B = row_of(skip + k * channels + first, d_B, live_B)
    q_NB = tl.zeros([N_PAD, BLOCK_D], tl.float32)
    if segment < segments - 1:
        for n in range(N):
            entering_B = state_at(ends, n, segments - 1, segment, channels, live_B, N, BLOCK_D, -1)
            q_NB = with_row(q_NB, n, entering_B, N_PAD)
    grad_weights = (tl.zeros([BLOCK_D, PIECE], tl.float32),) * PIECES
    grad_bias_B = tl.zeros([BLOCK_D], tl.float32)
    grad_skip_B = tl.zeros([BLOCK_D], tl.float32)
    grad_A_NB = tl.zeros([N_PAD, BLOCK_D], tl.float32)
    begin = segment * segment_steps // CHUNK
    chunks_here = tl.cdiv(tl.minimum(segment_steps, length - begin * CHUNK), CHUNK)
    # Where the tile is that comes before the first of the chunk in hand.
    steps_before = (begin + chunks_here) * CHUNK - T
    begun = steps_before // line
    u = steps_before - begun * line
    carry += (begin + chunks_here).to(tl.int64) * N * channels
    for i_chunk in range(chunks_here):
        chunk = begin + chunks_here - 1 - i_chunk
        carry -= N * channels
        begun, u = back(begun, u, CHUNK - T, line)
        # Row j * N_PAD + n: state n before tile j.
        states = tl.zeros([tiles * N_PAD, BLOCK_D], tl.float32)
        for n in range(N):
            recorded_B = tl.load(carry + n * channels + d_B, mask=live_B, other=0.0)
            states = with_row(states, n, recorded_B / LN2, tiles * N_PAD)
        tiles_here = tl.minimum(tiles, tl.cdiv(length - chunk * CHUNK, T))
        j = 0
        while j < tiles_here - 1:
            pixel_T, inside_T, begins_T = pixels(begun, u, route, T, WIDE, EVEN)
            low = load_low(proj, pixel_T, inside_T, width_p, R, PIECE)
            x_TB = load_tile(x, pixel_T, inside_T, d_B, live_B, channels).to(tl.float32)
            dt_TB = softplus(step_logit(low, weights, bias_1B, T, PRECISION), COEFFICIENTS)
            for n in range(N):
                a_TB = tl.exp2(dt_TB * row_of(A + n, d_B * N, live_B))
                if RESTART:
                    a_TB = tl.where((begins_T & restart)[:, None], 0.0, a_TB)
                B_T1, C_T1 = load_states(proj, pixel_T, inside_T, width_p, n, R, N, "")
                b_TB = dt_TB * x_TB * B_T1
                entered_TB = a_TB * row(states, j * N_PAD + n, tiles * N_PAD)[None, :]
                b_TB = tl.where(t_T1 == 0, entered_TB + b_TB, b_TB)
                decay_TB, h_TB = tl.associative_scan((a_TB, b_TB), 0, compose)
                states = with_row(states, (j + 1) * N_PAD + n, row(h_TB, T - 1, T), tiles * N_PAD)
            begun, u = onwards(begun, u, T, line)
            j += 1
        while j >= 0:
            pixel_T, inside_T, begins_T = pixels(begun, u, route, T, WIDE, EVEN)
            here = (pixel_T * channels)[:, None] + d_B[None, :]
            mask = inside_T[:, None] & live_B[None, :]
            low = load_low(proj, pixel_T, inside_T, width_p, R, PIECE)
            x_TB = tl.load(x + here, mask=mask, other=0.0).to(tl.float32)
            grad_y_TB = tl.load(grad_y + here, mask=mask, other=0.0).to(tl.float32)
            grad_x_TB = tl.zeros([T, BLOCK_D], tl.float32)
            z_TB = step_logit(low, weights, bias_1B, T, PRECISION)
            dt_TB = softplus(z_TB, COEFFICIENTS)
            # The logistic function of z, the derivative of softplus.
            slope_TB = tl.exp2(z_TB - dt_TB)
            grad_dt_TB = tl.zeros([T, BLOCK_D], tl.float32)
            grad_states_TS = tl.zeros([T, STATES], tl.float32)
            for n in range(N):
                A_1B = row_of(A + n, d_B * N, live_B)
                a_TB = tl.exp2(dt_TB * A_1B)
                if RESTART:
                    a_TB = tl.where((begins_T & restart)[:, None], 0.0, a_TB)
                B_T1, C_T1 = load_states(proj, pixel_T, inside_T, width_p, n, R, N, "evict_last")
                xB_TB = x_TB * B_T1
                b_TB = dt_TB * xB_TB
                entering_1B = row(states, j * N_PAD + n, tiles * N_PAD)[None, :]
                b_TB = tl.where(t_T1 == 0, a_TB * entering_1B + b_TB, b_TB)
                decay_TB, h_TB = tl.associative_scan((a_TB, b_TB), 0, compose)
                singles_TB = tl.full([T, BLOCK_D], 1, tl.int32)
                entering_TB = tl.broadcast_to(entering_1B, [T, BLOCK_D])
                last_TB, before_TB, single_TB = tl.associative_scan((h_TB, entering_TB, singles_TB), 0, shift)
                grad_states_TS = sum_into(grad_states_TS, grad_y_TB * h_TB, N + n, PRECISION)
                # In the middle on purpose: at a branch the compiler has to be done with what comes before.
                if HAS_SKIP:
                    if (k == 0) & (n == 0):  # the same for every route
                        same_TB, sums_TB = tl.associative_scan((h_TB, grad_y_TB * x_TB), 0, sum_beside)
                        grad_skip_B += row(sums_TB, T - 1, T)
                    if n == 0:
                        grad_x_TB += skip_1B * grad_y_TB
                if SCARCE:
                    B_T1, C_T1 = load_states(proj, pixel_T, inside_T, width_p, n, R, N, "")
                c_TB = grad_y_TB * C_T1
                c_TB = tl.where(t_T1 == T - 1, c_TB + row(q_NB, n, N_PAD)[None, :], c_TB)
                ones_TB = tl.full([T, BLOCK_D], 1.0, tl.float32)
                first_TB, others_TB, g_TB = tl.associative_scan(
                    (backwards(a_TB), ones_TB, backwards(c_TB)), 0, compose_adjoint
                )
                g_TB = backwards(g_TB)
                a_TB *= g_TB
                q_NB = with_row(q_NB, n, row(a_TB, 0, T), N_PAD)
                past_TB = a_TB * before_TB
                grad_A_B = row(grad_A_NB, n, N_PAD) + tl.sum(past_TB * dt_TB, 0)
                grad_A_NB = with_row(grad_A_NB, n, grad_A_B, N_PAD)
                grad_dt_TB += past_TB * (A_1B * LN2)
                grad_dt_TB += g_TB * xB_TB
                g_TB *= dt_TB
                B_T1, C_T1 = load_states(proj, pixel_T, inside_T, width_p, n, R, N, "evict_first")
                grad_x_TB += g_TB * B_T1
                grad_states_TS = sum_into(grad_states_TS, g_TB * x_TB, n, PRECISION)
            tl.store(grad_x + here, grad_x_TB.to(grad_x.dtype.element_ty), mask=mask)
            columns_T1 = (pixel_T * width_p)[:, None]
            tl.store(
                grad_proj + R + columns_T1 + s_S[None, :],
                grad_states_TS * tl.where(s_S < N, 1.0, LN2)[None, :],
                mask=inside_T[:, None] & (s_S < 2 * N)[None, :],
            )
            grad_z_TB = grad_dt_TB * slope_TB
            if SCARCE:
                low = load_low(proj, pixel_T, inside_T, width_p, R, PIECE)
            grad_bias_B += tl.sum(grad_z_TB, 0)
            added = ()
            for p in tl.static_range(PIECES):
                low_TP = low[p].to(tl.float32)
                grad_weight_BP = tl.dot(
                    tl.trans(grad_z_TB), low_TP, grad_weights[p], input_precision=PRECISION
                )
                added = added + (grad_weight_BP,)
                grad_low_TP = tl.dot(grad_z_TB, tl.trans(weights[p]), input_precision=PRECISION)
                r_P = tl.arange(0, PIECE) + p * PIECE
                tl.store(
                    grad_proj + columns_T1 + r_P[None, :],
                    grad_low_TP,
                    mask=inside_T[:, None] & (r_P < R)[None, :],
                )
            grad_weights = added
            begun, u = back(begun, u, T, line)
            j -= 1
    for p in tl.static_range(PIECES):
        r_P = tl.arange(0, PIECE) + p * PIECE
        at = (d_B * RANK)[:, None] + r_P[None, :]
        tl.store(grad_weight + at, grad_weights[p] * LOG2E, mask=live_B[:, None])
    tl.store(grad_rows + d_B, grad_bias_B * LOG2E, mask=live_B)
    tl.store(grad_rows + channels + d_B, grad_skip_B, mask=live_B)
    at = (n_N * channels)[:, None] + d_B[None, :]
    mask = (n_N < N)[:, None] & live_B[None, :]
    tl.store(grad_rows + 2 * channels + at, grad_A_NB * LN2, mask=mask)
