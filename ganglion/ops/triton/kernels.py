"""Device functions shared by the kernels, and the two forward kernels.

Layout. A program is one warp with its lanes on neighbouring channels, and it walks a stretch of one image along a
route in tiles of T steps. With as many channels as lanes, all T steps of a channel live in one thread where the
recurrence runs: it needs no shuffles, and the rest of a tile is T independent pieces of work that hide its latency.

Units. Step sizes are kept as dt / ln 2, so that softplus and decay are exp2 and the factor is folded into the
weights, once per route, and into B, once per pixel.

Shape letters: T steps of a tile, B a program's channels (BLOCK_D), R dt_rank padded to a power of two,
N d_state; K routes, L = height * width.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)

# log2(1 + e) / e on 0 <= e <= 1, minimax in relative error: 5.7e-5 and 1.9e-7. The hardware logarithm has an absolute
# error, which is no good for the small step sizes at which models start, and Triton's own takes more instructions.
LOG1P_HALF = tl.constexpr((1.44261321, -0.716987399, 0.441898751, -0.227119322, 0.0596514841))
LOG1P_FULL = tl.constexpr(
    (
        1.44269476,
        -0.721310088,
        0.480063694,
        -0.35339481,
        0.25600967,
        -0.155351803,
        0.063607842,
        -0.0123194593,
    )
)


@triton.jit
def compose(a0, b0, a1, b1):
    """The map h -> a1 * (a0 * h + b0) + b1, as a pair."""
    return a0 * a1, a1 * b0 + b1


@triton.jit
def row(x_TB, i, T: tl.constexpr):
    """Row i of a tile. Selected as integers: adding zeros is then free, and inf and NaN in other rows stay there."""
    pick = tl.arange(0, T)[:, None] == i
    return tl.sum(tl.where(pick, x_TB.to(tl.int32, bitcast=True), 0), 0).to(tl.float32, bitcast=True)


@triton.jit
def with_row(x_TB, i, value_B, T: tl.constexpr):
    """The tile with row i replaced."""
    return tl.where(tl.arange(0, T)[:, None] == i, value_B[None, :], x_TB)


@triton.jit
def walk(k, height, width, ROUTES: tl.constexpr):
    """Route k as (line, offset, outer, inner, restart): step i reads pixel offset + outer * (i // line) + inner *
    (i % line)."""
    code = 0
    for i in tl.static_range(len(ROUTES)):
        code = tl.where(k == i, ROUTES[i], code)
    transpose = (code & 1) != 0
    rows = 1 - (code & 2)
    cols = 1 - ((code & 4) >> 1)
    offset = (height - 1) * width * ((1 - rows) >> 1) + (width - 1) * ((1 - cols) >> 1)
    line = tl.where(transpose, height, width)
    outer = tl.where(transpose, cols, rows * width)
    inner = tl.where(transpose, rows * width, cols)
    return line, offset, outer, inner, (code & 8) != 0


@triton.jit
def pixels(start, line, offset, outer, inner, T: tl.constexpr, WIDE: tl.constexpr):
    """Pixel of each of the T steps from `start` on, and whether a line begins there.

    One division per tile; inside it u // line is a multiplication, exact while u * line < 2^31.
    """
    begun = start // line
    u_T = start - begun * line + tl.arange(0, T)
    magic = ((2147483647 + line.to(tl.int64)) // line).to(tl.uint32)
    q_T = tl.umulhi((2 * u_T).to(tl.uint32), magic).to(tl.int32)
    r_T = u_T - q_T * line
    pixel_T = offset + outer * (begun + q_T) + inner * r_T
    if WIDE:
        pixel_T = pixel_T.to(tl.int64)
    return pixel_T, r_T == 0


@triton.jit
def load_route(dt_weight, dt_bias, k, d_B, live_B, channels, R: tl.constexpr, RANK: tl.constexpr):
    """dt_weight[k] as (RANK, B) and dt_bias[k] as (B,), both times log2(e)."""
    r_R = tl.arange(0, RANK)
    at = (k * channels + d_B)[None, :] * R + r_R[:, None]
    weight_RB = tl.load(dt_weight + at, mask=live_B[None, :] & (r_R < R)[:, None], other=0.0) * LOG2E
    bias_B = tl.load(dt_bias + k * channels + d_B, mask=live_B, other=0.0) * LOG2E
    return weight_RB, bias_B


@triton.jit
def load_rank(proj, pixel_T, inside_T, width_p, R: tl.constexpr, RANK: tl.constexpr):
    """The low-rank part of a route's projections, (T, RANK) float32."""
    r_R = tl.arange(0, RANK)
    mask = inside_T[:, None] & (r_R < R)[None, :]
    return tl.load(proj + (pixel_T * width_p)[:, None] + r_R[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def step_size(low_TR, weight_RB, bias_B, PRECISION: tl.constexpr, COEFFICIENTS: tl.constexpr):
    """dt / ln 2 = softplus(z) / ln 2, and z / ln 2. Both (T, B).

    Steps behind the end of the walk get a step size too. It does no harm: x and grad_y are zero there, and no step
    that is wanted comes after them.
    """
    z_TB = tl.dot(low_TR, weight_RB, input_precision=PRECISION) + bias_B[None, :]
    e_TB = tl.exp2(-tl.abs(z_TB))
    n: tl.constexpr = len(COEFFICIENTS)
    p_TB = COEFFICIENTS[n - 1] * e_TB + COEFFICIENTS[n - 2]
    for i in tl.static_range(n - 2):
        p_TB = p_TB * e_TB + COEFFICIENTS[n - 3 - i]
    return tl.maximum(z_TB, 0.0) + e_TB * p_TB, z_TB


@triton.jit
def load_pixel(proj, pixel_T, inside_T, width_p, column):
    """One column of the projections, (T, 1) float32: B or C of one state."""
    return tl.load(proj + pixel_T * width_p + column, mask=inside_T, other=0.0).to(tl.float32)[:, None]


@triton.jit
def locate(batch, channels, n_groups, segments, BLOCK_D: tl.constexpr):
    """This program's (image, channels, group of routes, segment). Groups are neighbours: they read the same x."""
    pid = tl.program_id(0)
    segment = pid % segments
    pid = pid // segments
    group = pid % n_groups
    pid = pid // n_groups
    n_blocks = tl.cdiv(channels, BLOCK_D)
    block = pid % n_blocks
    # The hint keeps a lane to one channel, so that no lane has to hold a part of the walk.
    d_B = block * BLOCK_D + tl.max_contiguous(tl.arange(0, BLOCK_D), 1)
    return (pid // n_blocks).to(tl.int64), block, d_B, group, segment


@triton.jit
def state_at(ends, decays, first, last, at, stride, BLOCK_D: tl.constexpr, live_B, STEP: tl.constexpr):
    """The state that segments first, first + STEP, ... up to but without `last` leave behind."""
    state_B = tl.zeros([BLOCK_D], tl.float32)
    for i in range((last - first) * STEP):
        here = at + (first + i * STEP) * stride
        end_B = tl.load(ends + here, mask=live_B, other=0.0)
        state_B = tl.load(decays + here, mask=live_B, other=0.0) * state_B + end_B
    return state_B


@triton.jit
def segment_ends_kernel(
    x,  # (B, L, D): the scan's input, or grad_y when ADJOINT
    proj,
    dt_weight,
    dt_bias,
    A,
    ends,  # out (B, K, segments, N, D): the state a segment leaves when it is entered with zero
    decays,  # out, same shape: the factor from the state before the segment to the state after it
    batch,
    height,
    width,
    channels,
    segments,
    segment_steps,
    ROUTES: tl.constexpr,
    ADJOINT: tl.constexpr,
    N: tl.constexpr,
    N_PAD: tl.constexpr,
    R: tl.constexpr,
    RANK: tl.constexpr,
    T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    COEFFICIENTS: tl.constexpr,
    WIDE: tl.constexpr,
    EVEN: tl.constexpr,
    RESTART: tl.constexpr,
):
    """First pass of the chunked form. ADJOINT walks backwards and carries the gradient of the state instead."""
    n_routes: tl.constexpr = len(ROUTES)
    width_p: tl.constexpr = n_routes * (R + 2 * N)
    length = height * width
    b, block, d_B, k, segment = locate(batch, channels, n_routes, segments, BLOCK_D)
    live_B = (d_B < channels) | EVEN
    line, offset, outer, inner, restart = walk(k, height, width, ROUTES)
    weight_RB, bias_B = load_route(dt_weight, dt_bias, k, d_B, live_B, channels, R, RANK)
    x += b * length * channels
    proj += b * length * width_p + k * (R + 2 * N)
    state_NB = tl.zeros([N_PAD, BLOCK_D], tl.float32)
    decay_NB = tl.full([N_PAD, BLOCK_D], 1.0, tl.float32)
    last: tl.constexpr = 0 if ADJOINT else T - 1
    begin = segment * segment_steps
    steps = tl.minimum(segment_steps, length - begin)
    tiles = tl.cdiv(steps, T)
    for i in range(tiles):
        start = begin + (tiles - 1 - i if ADJOINT else i) * T
        inside_T = (start + tl.arange(0, T) < length) | EVEN
        pixel_T, begins_T = pixels(start, line, offset, outer, inner, T, WIDE)
        low_TR = load_rank(proj, pixel_T, inside_T, width_p, R, RANK)
        dt_TB, z_TB = step_size(low_TR, weight_RB, bias_B, PRECISION, COEFFICIENTS)
        here = (pixel_T * channels)[:, None] + d_B[None, :]
        x_TB = tl.load(x + here, mask=inside_T[:, None] & live_B[None, :], other=0.0).to(tl.float32)
        for n in range(N):
            A_B = tl.load(A + (k * channels + d_B) * N + n, mask=live_B, other=0.0)
            a_TB = tl.exp2(dt_TB * A_B[None, :])
            if RESTART:
                a_TB = tl.where((begins_T & restart)[:, None], 0.0, a_TB)
            if ADJOINT:
                b_TB = a_TB * x_TB * load_pixel(proj, pixel_T, inside_T, width_p, R + N + n)
            else:
                b_TB = dt_TB * x_TB * (load_pixel(proj, pixel_T, inside_T, width_p, R + n) * LN2)
            decay_TB, h_TB = tl.associative_scan((a_TB, b_TB), 0, compose, reverse=ADJOINT)
            h_TB += decay_TB * row(state_NB, n, N_PAD)[None, :]
            state_NB = with_row(state_NB, n, row(h_TB, last, T), N_PAD)
            decay_NB = with_row(decay_NB, n, row(decay_NB, n, N_PAD) * row(decay_TB, last, T), N_PAD)
    n_N = tl.arange(0, N_PAD)
    at = (((b * n_routes + k) * segments + segment) * N + n_N)[:, None] * channels + d_B[None, :]
    mask = (n_N < N)[:, None] & live_B[None, :]
    tl.store(ends + at, state_NB, mask=mask)
    tl.store(decays + at, decay_NB, mask=mask)


@triton.jit
def forward_kernel(
    x,  # (B, L, D)
    proj,  # (B, L, K * (R + 2 * N))
    dt_weight,  # (K, D, R)
    dt_bias,  # (K, D)
    A,  # (K, D, N)
    skip,  # (K, D), read if HAS_SKIP
    ends,  # read if segments > 1, see segment_ends_kernel
    decays,
    y,  # out (K / WALKS, B, L, D): the sum over each group of WALKS routes
    carry,  # out (B, K, chunks, N, D)
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
    """The scan. A program owns its channels of its partial map, so the routes it walks add up there in place."""
    n_routes: tl.constexpr = len(ROUTES)
    width_p: tl.constexpr = n_routes * (R + 2 * N)
    length = height * width
    b, block, d_B, group, segment = locate(batch, channels, n_routes // WALKS, segments, BLOCK_D)
    live_B = (d_B < channels) | EVEN
    x += b * length * channels
    y += (group * batch + b) * length * channels
    n_N = tl.arange(0, N_PAD)
    state_mask = (n_N < N)[:, None] & live_B[None, :]
    skip_B = tl.zeros([BLOCK_D], tl.float32)
    if HAS_SKIP:
        for i in range(WALKS):
            skip_B += tl.load(skip + (group * WALKS + i) * channels + d_B, mask=live_B, other=0.0)
    for i in range(WALKS):
        k = group * WALKS + i
        line, offset, outer, inner, restart = walk(k, height, width, ROUTES)
        weight_RB, bias_B = load_route(dt_weight, dt_bias, k, d_B, live_B, channels, R, RANK)
        proj_k = proj + b * length * width_p + k * (R + 2 * N)
        state_NB = tl.zeros([N_PAD, BLOCK_D], tl.float32)
        if segment > 0:
            for n in range(N):
                at = ((b * n_routes + k) * segments * N + n) * channels + d_B
                entering_B = state_at(ends, decays, 0, segment, at, N * channels, BLOCK_D, live_B, 1)
                state_NB = with_row(state_NB, n, entering_B, N_PAD)
        begin = segment * segment_steps
        for start in range(begin, tl.minimum(begin + segment_steps, length), T):
            inside_T = (start + tl.arange(0, T) < length) | EVEN
            if start % CHUNK == 0:
                record = (((b * n_routes + k) * chunks + start // CHUNK) * N + n_N)[:, None] * channels
                tl.store(carry + record + d_B[None, :], state_NB, mask=state_mask)
            pixel_T, begins_T = pixels(start, line, offset, outer, inner, T, WIDE)
            low_TR = load_rank(proj_k, pixel_T, inside_T, width_p, R, RANK)
            dt_TB, z_TB = step_size(low_TR, weight_RB, bias_B, PRECISION, COEFFICIENTS)
            here = (pixel_T * channels)[:, None] + d_B[None, :]
            mask = inside_T[:, None] & live_B[None, :]
            x_TB = tl.load(x + here, mask=mask, other=0.0).to(tl.float32)
            y_TB = tl.where(i == 0, skip_B, 0.0)[None, :] * x_TB
            for n in range(N):
                A_B = tl.load(A + (k * channels + d_B) * N + n, mask=live_B, other=0.0)
                a_TB = tl.exp2(dt_TB * A_B[None, :])
                if RESTART:
                    a_TB = tl.where((begins_T & restart)[:, None], 0.0, a_TB)
                b_TB = dt_TB * x_TB * (load_pixel(proj_k, pixel_T, inside_T, width_p, R + n) * LN2)
                decay_TB, h_TB = tl.associative_scan((a_TB, b_TB), 0, compose)
                h_TB += decay_TB * row(state_NB, n, N_PAD)[None, :]
                state_NB = with_row(state_NB, n, row(h_TB, T - 1, T), N_PAD)
                y_TB += load_pixel(proj_k, pixel_T, inside_T, width_p, R + N + n) * h_TB
            # The first walk adds the skip, the others what is there. A mask, as a branch would cost registers.
            y_TB += tl.load(y + here, mask=mask & (i > 0), other=0.0).to(tl.float32)
            tl.store(y + here, y_TB.to(y.dtype.element_ty), mask=mask)
        # The next route's loads of y must see this one's stores, whichever thread made them.
        tl.debug_barrier()
