"""The backward kernel. Layout, units and shape letters as in `kernels`.

With g_t the gradient of h_t, q_t = a_t * g_t that of h_{t-1} and c_t = C_t * grad_y_t,

    g_t = c_t + a_{t+1} * g_{t+1}

runs against the walk. A program goes through its segment chunk by chunk from the end. In a chunk it first walks
forwards from the recorded state to find the states before each tile, then takes the tiles in reverse, where it
recomputes the step sizes and the states and scans for g.

Gradients of z are kept times ln 2 and the weights times log2(e), so that their product needs no factor.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .kernels import (
    LN2,
    LOG2E,
    compose,
    load_rank,
    load_states,
    load_tile,
    load_weight,
    locate,
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
    return a1, m * p0, m * g0 + g1


@triton.jit
def compose_past(a0, p0, h0, a1, p1, h1):
    """`compose` that also gives p, the decayed previous state: h - b is the same but cancels where decay is strong."""
    carried = a1 * h0
    return a0 * a1, carried + p1, carried + h1


@triton.jit
def backwards(x_TB):
    """The tile with its steps in reverse. With all steps of a channel in one thread that takes no instruction, while
    a scan from the end would exchange every value between lanes, twice."""
    T: tl.constexpr = x_TB.shape[0]
    B: tl.constexpr = x_TB.shape[1]
    bits = x_TB.to(tl.int32, bitcast=True)
    for i in tl.static_range(6):
        if (2 << i) <= T:
            pairs = tl.reshape(bits, [T >> (i + 1), 2, B << i])
            bits = tl.reshape(tl.sum(pairs, 1)[:, None, :] - pairs, [T, B])
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def sum_into(sums_TS, x_TB, column, PRECISION: tl.constexpr):
    """Adds the sum over channels to one column. As a product of matrices, which takes a fraction of the instructions
    of a reduction across lanes."""
    B: tl.constexpr = x_TB.shape[1]
    S: tl.constexpr = sums_TS.shape[1]
    ones_BS = tl.where(tl.arange(0, S)[None, :] == column, tl.full([B, 1], 1.0, tl.float32), 0.0)
    return tl.dot(x_TB, ones_BS, sums_TS, input_precision=PRECISION)


@triton.jit
def backward_kernel(
    grad_y,  # (B, L, D)
    x,  # (B, L, D)
    proj,  # (B, L, K * (R + 2 * N))
    dt_weight,  # (K, D, RANK): padded, as rows of a constant length take fewer registers to address
    dt_bias,  # (K, D)
    A,  # (K, D, N)
    skip,  # (K, D), read if HAS_SKIP
    carry,  # (B, K, chunks, N, D)
    ends,  # read if segments > 1, see segment_ends_kernel
    decays,
    grad_x,  # out (K / WALKS, B, L, D)
    grad_proj,  # out (D / BLOCK_D, B, L, K * (R + 2 * N)) float32
    grad_weight,  # out (B, segments, K, D, RANK)
    grad_bias,  # out (B, segments, K, D)
    grad_A,  # out (B, segments, K, N, D)
    grad_skip,  # out (B, segments, D): the same for every route
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
    RANK: tl.constexpr,
    WALKS: tl.constexpr,
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
    width_p: tl.constexpr = n_routes * (R + 2 * N)
    tiles: tl.constexpr = CHUNK // T
    length = height * width
    b, block, d_B, group, segment = locate(batch, channels, n_routes // WALKS, segments, BLOCK_D)
    live_B = (d_B < channels) | EVEN
    x += b * length * channels
    grad_y += b * length * channels
    grad_x += (group * batch + b) * length * channels
    grad_proj += (block * batch + b) * length * width_p
    n_N = tl.arange(0, N_PAD)
    r_R = tl.arange(0, RANK)
    STATES: tl.constexpr = 16 if N <= 8 else 32
    s_S = tl.arange(0, STATES)
    t_T1 = tl.arange(0, T)[:, None]
    for i in range(WALKS):
        k = group * WALKS + i
        line, offset, outer, inner, restart = walk(k, height, width, ROUTES)
        weight_RB = load_weight(dt_weight, k, d_B, live_B, channels, RANK, RANK)
        first_column = k * (R + 2 * N)
        proj_k = proj + b * length * width_p + first_column
        grad_proj_k = grad_proj + first_column
        q_NB = tl.zeros([N_PAD, BLOCK_D], tl.float32)
        if segment < segments - 1:
            for n in range(N):
                at = ((b * n_routes + k) * segments * N + n) * channels + d_B
                entering_B = state_at(
                    ends, decays, segments - 1, segment, at, N * channels, BLOCK_D, live_B, -1
                )
                q_NB = with_row(q_NB, n, entering_B, N_PAD)
        grad_weight_BR = tl.zeros([BLOCK_D, RANK], tl.float32)
        grad_bias_B = tl.zeros([BLOCK_D], tl.float32)
        grad_skip_B = tl.zeros([BLOCK_D], tl.float32)
        grad_A_NB = tl.zeros([N_PAD, BLOCK_D], tl.float32)
        begin = segment * segment_steps // CHUNK
        chunks_here = tl.cdiv(tl.minimum(segment_steps, length - begin * CHUNK), CHUNK)
        for i_chunk in range(chunks_here):
            chunk = begin + chunks_here - 1 - i_chunk
            # Row j * N_PAD + n: state n before tile j.
            states = tl.zeros([tiles * N_PAD, BLOCK_D], tl.float32)
            for n in range(N):
                at = (((b * n_routes + k) * chunks + chunk) * N + n) * channels
                states = with_row(states, n, tl.load(carry + at + d_B, mask=live_B, other=0.0), tiles * N_PAD)
            tiles_here = tl.minimum(tiles, tl.cdiv(length - chunk * CHUNK, T))
            j = 0
            while j < tiles_here - 1:
                start = chunk * CHUNK + j * T
                inside_T = (start + tl.arange(0, T) < length) | EVEN
                begun = start // line
                pixel_T, begins_T = pixels(begun, start - begun * line, line, offset, outer, inner, T, WIDE)
                low_TR = load_rank(proj_k, pixel_T, inside_T, width_p, R, RANK)
                x_TB = load_tile(x, pixel_T, inside_T, d_B, live_B, channels).to(tl.float32)
                bias_1B = row_of(dt_bias, k * channels + d_B, live_B)
                dt_TB = softplus(step_logit(low_TR, weight_RB, bias_1B, PRECISION), COEFFICIENTS)
                for n in range(N):
                    a_TB = tl.exp2(dt_TB * row_of(A, (k * channels + d_B) * N + n, live_B))
                    if RESTART:
                        a_TB = tl.where((begins_T & restart)[:, None], 0.0, a_TB)
                    B_T1, C_T1 = load_states(proj_k, pixel_T, inside_T, width_p, n, R, N)
                    b_TB = dt_TB * x_TB * B_T1
                    entered_TB = a_TB * row(states, j * N_PAD + n, tiles * N_PAD)[None, :]
                    b_TB = tl.where(t_T1 == 0, entered_TB + b_TB, b_TB)
                    decay_TB, h_TB = tl.associative_scan((a_TB, b_TB), 0, compose)
                    states = with_row(states, (j + 1) * N_PAD + n, row(h_TB, T - 1, T), tiles * N_PAD)
                j += 1
            while j >= 0:
                start = chunk * CHUNK + j * T
                inside_T = (start + tl.arange(0, T) < length) | EVEN
                begun = start // line
                pixel_T, begins_T = pixels(begun, start - begun * line, line, offset, outer, inner, T, WIDE)
                here = (pixel_T * channels)[:, None] + d_B[None, :]
                mask = inside_T[:, None] & live_B[None, :]
                low_TR = load_rank(proj_k, pixel_T, inside_T, width_p, R, RANK).to(tl.float32)
                x_TB = tl.load(x + here, mask=mask, other=0.0).to(tl.float32)
                grad_y_TB = tl.load(grad_y + here, mask=mask, other=0.0).to(tl.float32)
                grad_x_TB = tl.zeros([T, BLOCK_D], tl.float32)
                if WALKS > 1:
                    grad_x_TB = tl.load(grad_x + here, mask=mask & (i > 0), other=0.0).to(tl.float32)
                bias_1B = row_of(dt_bias, k * channels + d_B, live_B)
                z_TB = step_logit(low_TR, weight_RB, bias_1B, PRECISION)
                dt_TB = softplus(z_TB, COEFFICIENTS)
                # The logistic function of z, the derivative of softplus.
                slope_TB = tl.exp2(z_TB - dt_TB)
                if k == 0:  # the same for every route
                    grad_skip_B += tl.sum(grad_y_TB * x_TB, 0)
                if HAS_SKIP:
                    grad_x_TB += row_of(skip, k * channels + d_B, live_B) * grad_y_TB
                grad_dt_TB = tl.zeros([T, BLOCK_D], tl.float32)
                grad_states_TS = tl.zeros([T, STATES], tl.float32)
                for n in range(N):
                    A_1B = row_of(A, (k * channels + d_B) * N + n, live_B)
                    a_TB = tl.exp2(dt_TB * A_1B)
                    if RESTART:
                        a_TB = tl.where((begins_T & restart)[:, None], 0.0, a_TB)
                    B_T1, C_T1 = load_states(proj_k, pixel_T, inside_T, width_p, n, R, N)
                    b_TB = dt_TB * x_TB * B_T1
                    entered_TB = a_TB * row(states, j * N_PAD + n, tiles * N_PAD)[None, :]
                    past_TB = tl.where(t_T1 == 0, entered_TB, 0.0)
                    b_TB = tl.where(t_T1 == 0, entered_TB + b_TB, b_TB)
                    decay_TB, past_TB, h_TB = tl.associative_scan((a_TB, past_TB, b_TB), 0, compose_past)
                    C_grad_TB = grad_y_TB * h_TB
                    c_TB = grad_y_TB * C_T1
                    c_TB = tl.where(t_T1 == T - 1, c_TB + row(q_NB, n, N_PAD)[None, :], c_TB)
                    ones_TB = tl.full([T, BLOCK_D], 1.0, tl.float32)
                    first_TB, others_TB, g_TB = tl.associative_scan(
                        (backwards(a_TB), ones_TB, backwards(c_TB)), 0, compose_adjoint
                    )
                    g_TB = backwards(g_TB)
                    q_NB = with_row(q_NB, n, row(a_TB * g_TB, 0, T), N_PAD)
                    past_TB *= g_TB
                    grad_A_B = row(grad_A_NB, n, N_PAD) + tl.sum(past_TB * dt_TB, 0)
                    grad_A_NB = with_row(grad_A_NB, n, grad_A_B, N_PAD)
                    grad_dt_TB += past_TB * (A_1B * LN2) + g_TB * (x_TB * B_T1)
                    g_TB *= dt_TB
                    grad_x_TB += g_TB * B_T1
                    grad_states_TS = sum_into(grad_states_TS, g_TB * x_TB * LN2, n, PRECISION)
                    grad_states_TS = sum_into(grad_states_TS, C_grad_TB, N + n, PRECISION)
                tl.store(grad_x + here, grad_x_TB.to(grad_x.dtype.element_ty), mask=mask)
                grad_z_TB = grad_dt_TB * slope_TB
                # Fetched again rather than kept, to spare the registers.
                low_TR = load_rank(proj_k, pixel_T, inside_T, width_p, R, RANK).to(tl.float32)
                grad_bias_B += tl.sum(grad_z_TB, 0)
                grad_weight_BR = tl.dot(
                    tl.trans(grad_z_TB), low_TR, grad_weight_BR, input_precision=PRECISION
                )
                grad_low_TR = tl.dot(grad_z_TB, tl.trans(weight_RB), input_precision=PRECISION)
                columns_T1 = (pixel_T * width_p)[:, None]
                tl.store(
                    grad_proj_k + columns_T1 + r_R[None, :],
                    grad_low_TR,
                    mask=inside_T[:, None] & (r_R < R)[None, :],
                )
                tl.store(
                    grad_proj_k + R + columns_T1 + s_S[None, :],
                    grad_states_TS,
                    mask=inside_T[:, None] & (s_S < 2 * N)[None, :],
                )
                j -= 1
        at = ((b * segments + segment) * n_routes + k) * channels
        weight_at = (at + d_B)[:, None] * RANK + r_R[None, :]
        tl.store(grad_weight + weight_at, grad_weight_BR * LOG2E, mask=live_B[:, None])
        tl.store(grad_bias + at + d_B, grad_bias_B * LOG2E, mask=live_B)
        A_at = (((b * segments + segment) * n_routes + k) * N + n_N)[:, None] * channels + d_B[None, :]
        tl.store(grad_A + A_at, grad_A_NB * LN2, mask=(n_N < N)[:, None] & live_B[None, :])
        if k == 0:
            tl.store(grad_skip + (b * segments + segment) * channels + d_B, grad_skip_B, mask=live_B)
        # The next route's loads of grad_x must see this one's stores, whichever thread made them.
        tl.debug_barrier()
