"""Device functions shared by the kernels, and the two forward kernels.

Layout. A program is one warp that walks a stretch of one image along a route in tiles of T steps. A tile comes from
memory with neighbouring lanes on neighbouring bytes. The recurrence runs with a lane to a channel and all T steps of
a channel in one thread: it needs no shuffles, and the rest of a tile is T independent pieces of work that hide its
latency. `by_channel` moves a tile from the one to the other.

Which layout an operation gets is the compiler's choice. It keeps those of loads, prefers the one of the load that
comes last, and keeps products of matrices in theirs: so A, and here the bias and D, one row per tile, are loaded after
x, and everything between them and the stores follows. test_triton.py looks.

Units. Step sizes are kept as dt / ln 2, so that softplus and decay are exp2; the factor is folded into the weights.
States are divided by ln 2 too, and C is multiplied by it.

Shape letters: T steps of a tile, B a program's channels (BLOCK_D), R dt_rank, P columns of a piece of it (PIECE),
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
    return a0 * a1, tl.fma(a1, b0, b1)


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
    """Route k as (line, lines, offset, outer, inner) and whether it restarts: step i of lines * line reads pixel
    offset + outer * (i // line) + inner * (i % line)."""
    code = 0
    for i in tl.static_range(len(ROUTES)):
        code = tl.where(k == i, ROUTES[i], code)
    transpose = (code & 1) != 0
    rows = 1 - (code & 2)
    cols = 1 - ((code & 4) >> 1)
    offset = (height - 1) * width * ((1 - rows) >> 1) + (width - 1) * ((1 - cols) >> 1)
    line = tl.where(transpose, height, width)
    lines = tl.where(transpose, width, height)
    outer = tl.where(transpose, cols, rows * width)
    inner = tl.where(transpose, rows * width, cols)
    return (line, lines, offset, outer, inner), (code & 8) != 0


@triton.jit
def lines_within(u, line):
    """u // line as a multiplication, exact while u * line < 2^31."""
    magic = ((2147483647 + line.to(tl.int64)) // line).to(tl.uint32)
    return tl.umulhi((2 * u).to(tl.uint32), magic).to(tl.int32)


@triton.jit
def onwards(begun, u, steps, line):
    """The position (line number, step of that line) `steps` steps later."""
    by = lines_within(u + steps, line)
    return begun + by, u + steps - by * line


@triton.jit
def back(begun, u, steps, line):
    """The position `steps` steps earlier."""
    by = lines_within(line - 1 - (u - steps), line)
    return begun - by, u - steps + by * line


@triton.jit
def pixels(begun, u, route, T: tl.constexpr, WIDE: tl.constexpr, EVEN: tl.constexpr):
    """Pixel of each of the T steps from step u of line number `begun` on, whether it is before the end of the walk,
    and whether a line begins there."""
    line, lines, offset, outer, inner = route
    u_T = u + tl.arange(0, T)
    q_T = lines_within(u_T, line)
    r_T = u_T - q_T * line
    pixel_T = offset + outer * (begun + q_T) + inner * r_T
    if WIDE:
        pixel_T = pixel_T.to(tl.int64)
    return pixel_T, (begun + q_T < lines) | EVEN, r_T == 0


@triton.jit
def load_weights(dt_weight, d_B, live_B, R: tl.constexpr, PIECE: tl.constexpr):
    """A route's dt_weight * log2(e) as pieces (P, B).

    With a hint against wide loads: they bring a layout of which operands of a product are made by exchange between
    lanes, once per tile, while from this one they are made by way of shared memory, which keeps them.
    """
    weights = ()
    for i in tl.static_range((R + PIECE - 1) // PIECE):
        r_P = tl.arange(0, PIECE) + i * PIECE
        at = tl.max_contiguous((d_B * R)[None, :] + r_P[:, None], [1, 1])
        mask = live_B[None, :] & (r_P < R)[:, None]
        weights = weights + (tl.load(dt_weight + at, mask=mask, other=0.0) * LOG2E,)
    return weights


@triton.jit
def load_low(proj, pixel_T, inside_T, width_p, R: tl.constexpr, PIECE: tl.constexpr):
    """The low-rank part of a route's projections as pieces (T, P)."""
    low = ()
    for i in tl.static_range((R + PIECE - 1) // PIECE):
        r_P = tl.arange(0, PIECE) + i * PIECE
        mask = inside_T[:, None] & (r_P < R)[None, :]
        low = low + (tl.load(proj + (pixel_T * width_p)[:, None] + r_P[None, :], mask=mask, other=0.0),)
    return low


@triton.jit
def load_tile(x, pixel_T, inside_T, d_B, live_B, channels):
    """T pixels of a map, (T, B)."""
    mask = inside_T[:, None] & live_B[None, :]
    return tl.load(x + (pixel_T * channels)[:, None] + d_B[None, :], mask=mask, other=0.0)


@triton.jit
def load_states(proj, pixel_T, inside_T, width_p, n, R: tl.constexpr, N: tl.constexpr, POLICY: tl.constexpr):
    """B and C * ln 2 of state n, each (T, 1) float32. Loads of different policies are not taken to be one."""
    which_2 = tl.arange(0, 2)
    at_T2 = (pixel_T * width_p)[:, None] + (R + n + which_2 * N)[None, :]
    both_T2 = tl.load(proj + at_T2, mask=inside_T[:, None], other=0.0, eviction_policy=POLICY).to(tl.float32)
    B_T, C_T = tl.split(both_T2 * tl.where(which_2 == 0, 1.0, LN2)[None, :])
    return B_T[:, None], C_T[:, None]


@triton.jit
def row_of(parameter, at_B, live_B):
    """A row (1, B) of a parameter, a lane to a channel."""
    return tl.load(parameter + at_B[None, :], mask=live_B[None, :], other=0.0)


@triton.jit
def latter(a, b):
    return b


@triton.jit
def by_channel(x_TB):
    """The tile as it is, laid out for scans: a scan that carries nothing, which takes no instruction."""
    return tl.associative_scan(x_TB, 0, latter)


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
def softplus(z_TB, COEFFICIENTS: tl.constexpr):
    """softplus(z) / ln 2 from z / ln 2."""
    e_TB = tl.exp2(-tl.abs(z_TB))
    n: tl.constexpr = len(COEFFICIENTS)
    p_TB = COEFFICIENTS[n - 1] * e_TB + COEFFICIENTS[n - 2]
    for i in tl.static_range(n - 2):
        p_TB = p_TB * e_TB + COEFFICIENTS[n - 3 - i]
    return tl.maximum(z_TB, 0.0) + e_TB * p_TB


@triton.jit
def step_logit(low, weights, bias_1B, T: tl.constexpr, PRECISION: tl.constexpr):
    """z / ln 2, of which softplus makes dt, (T, B).

    Steps behind the end of the walk get a step size too. It does no harm: x and grad_y are zero there, and no step
    that is wanted comes after them.
    """
    z_TB = tl.zeros([T, bias_1B.shape[1]], tl.float32)
    for i in tl.static_range(len(low)):
        z_TB = tl.dot(low[i].to(tl.float32), weights[i], z_TB, input_precision=PRECISION)
    return by_channel(z_TB) + bias_1B * LOG2E


@triton.jit
def locate(batch, channels, n_groups, segments, BLOCK_D: tl.constexpr):
    """This program's (image, block of channels, group of routes, segment). Groups are neighbours: they read one x."""
    pid = tl.program_id(0)
    segment = pid % segments
    pid = pid // segments
    group = pid % n_groups
    pid = pid // n_groups
    n_blocks = tl.cdiv(channels, BLOCK_D)
    return (pid // n_blocks).to(tl.int64), pid % n_blocks, group, segment


@triton.jit
def state_at(
    ends, n, first, last, channels, live_B, N: tl.constexpr, BLOCK_D: tl.constexpr, STEP: tl.constexpr
):
    """State n that segments first, first + STEP, ... up to but without `last` of a route leave behind."""
    d_B = tl.arange(0, BLOCK_D)
    state_B = tl.zeros([BLOCK_D], tl.float32)
    for i in range((last - first) * STEP):
        here = ends + ((first + i * STEP) * 2 * N + n) * channels
        end_B = tl.load(here + d_B, mask=live_B, other=0.0)
        state_B = tl.load(here + N * channels + d_B, mask=live_B, other=0.0) * state_B + end_B
    return state_B


@triton.jit
def segment_ends_kernel(
    x,  # (B, L, D): the scan's input, or grad_y when ADJOINT
    proj,
    dt_weight,
    dt_bias,
    A,
    ends,  # out (B, K, segments, 2, N, D): the state that a segment leaves when it is entered with zero, and the
    # factor from the state before it to the state after it
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
    PIECE: tl.constexpr,
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
    b, block, k, segment = locate(batch, channels, n_routes, segments, BLOCK_D)
    first = block * BLOCK_D
    d_B = tl.arange(0, BLOCK_D)
    live_B = (d_B < channels - first) | EVEN
    route, restart = walk(k, height, width, ROUTES)
    line = route[0]
    x += b * length * channels + first
    proj += b * length * width_p + k * (R + 2 * N)
    ends += ((b * n_routes + k) * segments + segment) * 2 * N * channels + first
    dt_weight += (k * channels + first) * R
    dt_bias += k * channels + first
    A += (k * channels + first) * N
    weights = load_weights(dt_weight, d_B, live_B, R, PIECE)
    state_NB = tl.zeros([N_PAD, BLOCK_D], tl.float32)
    decay_NB = tl.full([N_PAD, BLOCK_D], 1.0, tl.float32)
    begin = segment * segment_steps
    tiles = tl.cdiv(tl.minimum(segment_steps, length - begin), T)
    start = begin + (tiles - 1) * T if ADJOINT else begin
    begun = start // line
    u = start - begun * line
    while tiles > 0:
        tiles -= 1
        pixel_T, inside_T, begins_T = pixels(begun, u, route, T, WIDE, EVEN)
        begun, u = back(begun, u, T, line) if ADJOINT else onwards(begun, u, T, line)
        low = load_low(proj, pixel_T, inside_T, width_p, R, PIECE)
        x_TB = load_tile(x, pixel_T, inside_T, d_B, live_B, channels).to(tl.float32)
        bias_1B = row_of(dt_bias, d_B, live_B)
        dt_TB = softplus(step_logit(low, weights, bias_1B, T, PRECISION), COEFFICIENTS)
        for n in range(N):
            a_TB = tl.exp2(dt_TB * row_of(A + n, d_B * N, live_B))
            if RESTART:
                a_TB = tl.where((begins_T & restart)[:, None], 0.0, a_TB)
            B_T1, C_T1 = load_states(proj, pixel_T, inside_T, width_p, n, R, N, "")
            b_TB = a_TB * x_TB * C_T1 if ADJOINT else dt_TB * x_TB * B_T1
            if ADJOINT:
                a_TB, b_TB = backwards(a_TB), backwards(b_TB)
            decay_TB, h_TB = tl.associative_scan((a_TB, b_TB), 0, compose)
            h_TB += decay_TB * row(state_NB, n, N_PAD)[None, :]
            state_NB = with_row(state_NB, n, row(h_TB, T - 1, T), N_PAD)
            decay_NB = with_row(decay_NB, n, row(decay_NB, n, N_PAD) * row(decay_TB, T - 1, T), N_PAD)
    n_N = tl.arange(0, N_PAD)
    at = (n_N * channels)[:, None] + d_B[None, :]
    mask = (n_N < N)[:, None] & live_B[None, :]
    tl.store(ends + at, state_NB, mask=mask)
    tl.store(ends + N * channels + at, decay_NB, mask=mask)


@triton.jit
def forward_kernel(
    x,  # (B, L, D)
    proj,  # (B, L, K * (R + 2 * N))
    dt_weight,  # (K, D, R)
    dt_bias,  # (K, D)
    A,  # (K, D, N)
    skip,  # (K, D), read if HAS_SKIP
    ends,  # read if segments > 1, see segment_ends_kernel
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
    PIECE: tl.constexpr,
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
    b, block, group, segment = locate(batch, channels, n_routes // WALKS, segments, BLOCK_D)
    first = block * BLOCK_D
    d_B = tl.arange(0, BLOCK_D)
    live_B = (d_B < channels - first) | EVEN
    x += b * length * channels + first
    y += (group * batch + b) * length * channels + first
    n_N = tl.arange(0, N_PAD)
    state_mask = (n_N < N)[:, None] & live_B[None, :]
    first_T1 = (tl.arange(0, T) == 0)[:, None]
    for i in range(WALKS):
        k = group * WALKS + i
        route, restart = walk(k, height, width, ROUTES)
        line = route[0]
        proj_k = proj + (b * length * width_p + k * (R + 2 * N))
        ends_k = ends + ((b * n_routes + k) * segments * 2 * N * channels + first)
        carry_k = carry + ((b * n_routes + k) * chunks * N * channels + first)
        bias_k = dt_bias + (k * channels + first)
        skip_k = skip + (k * channels + first)
        A_k = A + (k * channels + first) * N
        weights = load_weights(dt_weight + (k * channels + first) * R, d_B, live_B, R, PIECE)
        state_NB = tl.zeros([N_PAD, BLOCK_D], tl.float32)
        if segment > 0:
            for n in range(N):
                entering_B = state_at(ends_k, n, 0, segment, channels, live_B, N, BLOCK_D, 1)
                state_NB = with_row(state_NB, n, entering_B, N_PAD)
        start = segment * segment_steps
        end = tl.minimum(start + segment_steps, length)
        begun = start // line
        u = start - begun * line
        pixel_T, inside_T, begins_T = pixels(begun, u, route, T, WIDE, EVEN)
        low = load_low(proj_k, pixel_T, inside_T, width_p, R, PIECE)
        x_TB = load_tile(x, pixel_T, inside_T, d_B, live_B, channels)
        while start < end:
            if start % CHUNK == 0:
                record = carry_k + (start // CHUNK).to(tl.int64) * N * channels
                at = (n_N * channels)[:, None] + d_B[None, :]
                tl.store(record + at, state_NB * LN2, mask=state_mask)
            pixel_T, inside_T, begins_T = pixels(begun, u, route, T, WIDE, EVEN)
            # The next tile is fetched while this one is worked on. At the end that is this one again.
            start += T
            begun, u = onwards(begun, u, tl.where(start < end, T, 0), line)
            next_T, next_inside_T, next_begins_T = pixels(begun, u, route, T, WIDE, EVEN)
            next_low = load_low(proj_k, next_T, next_inside_T, width_p, R, PIECE)
            next_x_TB = load_tile(x, next_T, next_inside_T, d_B, live_B, channels)
            here = (pixel_T * channels)[:, None] + d_B[None, :]
            mask = inside_T[:, None] & live_B[None, :]
            x_TB = x_TB.to(tl.float32)
            y_TB = tl.zeros([T, BLOCK_D], tl.float32)
            if WALKS > 1:  # a mask, as a branch would cost registers
                y_TB = tl.load(y + here, mask=mask & (i > 0), other=0.0).to(tl.float32)
            bias_1B = row_of(bias_k, d_B, live_B)
            dt_TB = softplus(step_logit(low, weights, bias_1B, T, PRECISION), COEFFICIENTS)
            if HAS_SKIP:
                y_TB += row_of(skip_k, d_B, live_B) * x_TB
            for n in range(N):
                a_TB = tl.exp2(dt_TB * row_of(A_k + n, d_B * N, live_B))
                if RESTART:
                    a_TB = tl.where((begins_T & restart)[:, None], 0.0, a_TB)
                B_T1, C_T1 = load_states(proj_k, pixel_T, inside_T, width_p, n, R, N, "")
                b_TB = dt_TB * x_TB * B_T1
                b_TB = tl.where(first_T1, a_TB * row(state_NB, n, N_PAD)[None, :] + b_TB, b_TB)
                decay_TB, h_TB = tl.associative_scan((a_TB, b_TB), 0, compose)
                state_NB = with_row(state_NB, n, row(h_TB, T - 1, T), N_PAD)
                y_TB += C_T1 * h_TB
            tl.store(y + here, y_TB.to(y.dtype.element_ty), mask=mask)
            low = next_low
            x_TB = next_x_TB
        # The next route's loads of y must see this one's stores, whichever thread made them.
        tl.debug_barrier()
