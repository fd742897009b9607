"""The backward kernel. Layout, units and shape letters as in `kernels`.

With g_t the gradient of h_t, q_t = a_t * g_t that of h_{t-1} and c_t = C_t * grad_y_t,

    g_t = c_t + a_{t+1} * g_{t+1}

runs against the walk. A program goes through its segment chunk by chunk from the end. In a chunk it first walks
forwards from the recorded state to find the states before each tile, then takes the tiles in reverse, where it
recomputes the step sizes and the states and scans for g.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .kernels import (
    LN2,
    compose,
    load_pixel,
    load_rank,
    load_route,
    locate,
    pixels,
    row,
    state_at,
    step_size,
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
    decays,
    grad_x,  # out (K / WALKS, B, L, D)
    grad_proj,  # out (D / BLOCK_D, B, L, K * (R + 2 * N)) float32
    grad_weight,  # out (B, segments, K, D, R)
    grad_bias,  # out (B, segments, K, D)
    grad_A,  # out (B, segments, K, N, D)
    grad_skip,  # out (B, segments, K, D)
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
    skip_B = tl.zeros([BLOCK_D], tl.float32)
    if HAS_SKIP:
        for i in range(WALKS):
            skip_B += tl.load(skip + (group * WALKS + i) * channels + d_B, mask=live_B, other=0.0)
    for i in range(WALKS):
        k = group * WALKS + i
        line, offset, outer, inner, restart = walk(k, height, width, ROUTES)
        weight_RB, bias_B = load_route(dt_weight, dt_bias, k, d_B, live_B, channels, R, RANK)
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
            for j in range(tiles_here - 1):
                start = chunk * CHUNK + j * T
                inside_T = (start + tl.arange(0, T) < length) | EVEN
                pixel_T, begins_T = pixels(start, line, offset, outer, inner, T, WIDE)
                low_TR = load_rank(proj_k, pixel_T, inside_T, width_p, R, RANK)
                dt_TB, z_TB = step_size(low_TR, weight_RB, bias_B, PRECISION, COEFFICIENTS)
                here = (pixel_T * channels)[:, None] + d_B[None, :]
                x_TB = tl.load(x + here, mask=inside_T[:, None] & live_B[None, :], other=0.0).to(tl.float32)
                for n in range(N):
                    A_B = tl.load(A + (k * channels + d_B) * N + n, mask=live_B, other=0.0)
                    a_TB = tl.exp2(dt_TB * A_B[None, :])
                    if RESTART:
                        a_TB = tl.where((begins_T & restart)[:, None], 0.0, a_TB)
                    b_TB = dt_TB * x_TB * (load_pixel(proj_k, pixel_T, inside_T, width_p, R + n) * LN2)
                    h_B = row(states, j * N_PAD + n, tiles * N_PAD)
                    decay_TB, h_TB = tl.associative_scan((a_TB, b_TB), 0, compose)
                    h_TB += decay_TB * h_B[None, :]
                    states = with_row(states, (j + 1) * N_PAD + n, row(h_TB, T - 1, T), tiles * N_PAD)
            for i_tile in range(tiles_here):
                j = tiles_here - 1 - i_tile
                start = chunk * CHUNK + j * T
                inside_T = (start + tl.arange(0, T) < length) | EVEN
                pixel_T, begins_T = pixels(start, line, offset, outer, inner, T, WIDE)
                low_TR = load_rank(proj_k, pixel_T, inside_T, width_p, R, RANK)
                dt_TB, z_TB = step_size(low_TR, weight_RB, bias_B, PRECISION, COEFFICIENTS)
                here = (pixel_T * channels)[:, None] + d_B[None, :]
                mask = inside_T[:, None] & live_B[None, :]
                x_TB = tl.load(x + here, mask=mask, other=0.0).to(tl.float32)
                grad_y_TB = tl.load(grad_y + here, mask=mask, other=0.0).to(tl.float32)
                # The logistic function of z, the derivative of softplus.
                slope_TB = tl.exp2(z_TB - dt_TB)
                grad_skip_B += tl.sum(grad_y_TB * x_TB, 0)
                grad_dt_TB = tl.zeros([T, BLOCK_D], tl.float32)
                grad_x_TB = tl.zeros([T, BLOCK_D], tl.float32)
                columns = grad_proj_k + pixel_T * width_p
                for n in range(N):
                    A_B = tl.load(A + (k * channels + d_B) * N + n, mask=live_B, other=0.0)
                    a_TB = tl.exp2(dt_TB * A_B[None, :])
                    if RESTART:
                        a_TB = tl.where((begins_T & restart)[:, None], 0.0, a_TB)
                    B_T1 = load_pixel(proj_k, pixel_T, inside_T, width_p, R + n)
                    b_TB = dt_TB * x_TB * (B_T1 * LN2)
                    h_B = row(states, j * N_PAD + n, tiles * N_PAD)
                    zeros_TB = tl.zeros([T, BLOCK_D], tl.float32)
                    decay_TB, past_TB, h_TB = tl.associative_scan((a_TB, zeros_TB, b_TB), 0, compose_past)
                    entered_TB = decay_TB * h_B[None, :]
                    past_TB += entered_TB
                    h_TB += entered_TB
                    tl.store(columns + R + N + n, tl.sum(grad_y_TB * h_TB, 1), mask=inside_T)
                    c_TB = grad_y_TB * load_pixel(proj_k, pixel_T, inside_T, width_p, R + N + n)
                    ones_TB = tl.full([T, BLOCK_D], 1.0, tl.float32)
                    first_TB, others_TB, g_TB = tl.associative_scan(
                        (a_TB, ones_TB, c_TB), 0, compose_adjoint, reverse=True
                    )
                    g_TB += others_TB * row(q_NB, n, N_PAD)[None, :]
                    q_NB = with_row(q_NB, n, row(a_TB * g_TB, 0, T), N_PAD)
                    past_TB *= g_TB
                    grad_A_B = row(grad_A_NB, n, N_PAD) + tl.sum(past_TB * dt_TB, 0)
                    grad_A_NB = with_row(grad_A_NB, n, grad_A_B, N_PAD)
                    grad_dt_TB += past_TB * A_B[None, :] + g_TB * (x_TB * B_T1)
                    g_TB *= dt_TB
                    grad_x_TB += g_TB * (B_T1 * LN2)
                    tl.store(columns + R + n, tl.sum(g_TB * x_TB, 1) * LN2, mask=inside_T)
                if i == 0:
                    grad_x_TB += skip_B[None, :] * grad_y_TB
                else:
                    grad_x_TB += tl.load(grad_x + here, mask=mask, other=0.0).to(tl.float32)
                tl.store(grad_x + here, grad_x_TB.to(grad_x.dtype.element_ty), mask=mask)
                grad_z_TB = grad_dt_TB * slope_TB
                grad_bias_B += tl.sum(grad_z_TB, 0)
                grad_weight_BR = tl.dot(
                    tl.trans(grad_z_TB), low_TR, grad_weight_BR, input_precision=PRECISION
                )
                grad_low_TR = tl.dot(grad_z_TB, tl.trans(weight_RB), input_precision=PRECISION) * LN2
                tl.store(
                    columns[:, None] + r_R[None, :], grad_low_TR, mask=inside_T[:, None] & (r_R < R)[None, :]
                )
        at = ((b * segments + segment) * n_routes + k) * channels
        weight_at = (at + d_B)[:, None] * R + r_R[None, :]
        tl.store(grad_weight + weight_at, grad_weight_BR, mask=live_B[:, None] & (r_R < R)[None, :])
        tl.store(grad_bias + at + d_B, grad_bias_B, mask=live_B)
        A_at = (((b * segments + segment) * n_routes + k) * N + n_N)[:, None] * channels + d_B[None, :]
        tl.store(grad_A + A_at, grad_A_NB * LN2, mask=(n_N < N)[:, None] & live_B[None, :])
        tl.store(grad_skip + at + d_B, grad_skip_B, mask=live_B)
        # The next route's loads of grad_x must see this one's stores, whichever thread made them.
        tl.debug_barrier()
