"""Device functions shared by the kernels, and the two forward kernels.

Work. A program is one warp. It walks a segment of one route of one image, for BLOCK_D channels, in tiles of T steps.

Layouts. Memory is read with neighbouring lanes on neighbouring channels. The recurrence runs with one channel to a lane
and all T steps of it in that lane's registers: it needs no shuffles, and the T steps hide its latency. `by_channel`
changes a tile from the first layout to the second. The compiler chooses the layout of each operation: it keeps those of
loads and of matrix products, and prefers that of the last load. So A, dt_bias and D, one row for a tile, are loaded
after x, and what lies between them and the stores takes their layout. tests/ops/test_triton.py checks this.

Units. Step sizes are kept as dt / ln 2, so that softplus and decay are exp2; the factor is folded into the weights.
States are divided by ln 2 too, and C is multiplied by it.

Names. b_x: a tile or row of x in registers. o_d, o_t: offsets along channels, steps. m_d, m_t: masks of those. p_x: a
pointer. i_b, i_d, i_k, i_s, i_g, i_c: index of the image, block of channels, route, segment, group of routes, chunk.
i_line, i_step: position of a walk, as line of the image and step of that line.

Shapes. T steps of a tile, B = BLOCK_D channels, R dt_rank, P = PIECE columns of a piece of it, N d_state, padded to
N_PAD; K routes, L = height * width. A tile is (T, B), the state (N_PAD, B), dt_weight a tuple of pieces (P, B).
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
def row(b_x, i, T: tl.constexpr):
    """Row i of a tile. Selected as integers: adding zeros is then free, and inf and NaN in other rows stay there."""
    pick = tl.arange(0, T)[:, None] == i
    return tl.sum(tl.where(pick, b_x.to(tl.int32, bitcast=True), 0), 0).to(tl.float32, bitcast=True)


@triton.jit
def with_row(b_x, i, b_value, T: tl.constexpr):
    """The tile with row i replaced."""
    return tl.where(tl.arange(0, T)[:, None] == i, b_value[None, :], b_x)


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
def onwards(i_line, i_step, steps, line):
    """The position (line number, step of that line) `steps` steps later."""
    by = lines_within(i_step + steps, line)
    return i_line + by, i_step + steps - by * line


@triton.jit
def back(i_line, i_step, steps, line):
    """The position `steps` steps earlier."""
    by = lines_within(line - 1 - (i_step - steps), line)
    return i_line - by, i_step - steps + by * line


@triton.jit
def pixels(i_line, i_step, route, T: tl.constexpr, WIDE: tl.constexpr, EVEN: tl.constexpr):
    """Pixel of each of the T steps from step i_step of line i_line on, whether it is before the end of the walk,
    and whether a line begins there."""
    line, lines, offset, outer, inner = route
    o_u = i_step + tl.arange(0, T)
    o_line = lines_within(o_u, line)
    o_step = o_u - o_line * line
    o_pixel = offset + outer * (i_line + o_line) + inner * o_step
    if WIDE:
        o_pixel = o_pixel.to(tl.int64)
    return o_pixel, (i_line + o_line < lines) | EVEN, o_step == 0


@triton.jit
def load_weights(dt_weight, o_d, m_d, R: tl.constexpr, PIECE: tl.constexpr):
    """A route's dt_weight * log2(e) as pieces (P, B).

    With a hint against wide loads: they bring a layout of which operands of a product are made by exchange between
    lanes, once per tile, while from this one they are made by way of shared memory, which keeps them.
    """
    b_w = ()
    for i in tl.static_range((R + PIECE - 1) // PIECE):
        o_r = tl.arange(0, PIECE) + i * PIECE
        o_h = tl.max_contiguous((o_d * R)[None, :] + o_r[:, None], [1, 1])
        m_x = m_d[None, :] & (o_r < R)[:, None]
        b_w = b_w + (tl.load(dt_weight + o_h, mask=m_x, other=0.0).to(tl.float32) * LOG2E,)
    return b_w


@triton.jit
def load_low(proj, o_pixel, m_t, width_p, R: tl.constexpr, PIECE: tl.constexpr):
    """The low-rank part of a route's projections as pieces (T, P)."""
    b_low = ()
    for i in tl.static_range((R + PIECE - 1) // PIECE):
        o_r = tl.arange(0, PIECE) + i * PIECE
        m_x = m_t[:, None] & (o_r < R)[None, :]
        b_low = b_low + (tl.load(proj + (o_pixel * width_p)[:, None] + o_r[None, :], mask=m_x, other=0.0),)
    return b_low


@triton.jit
def load_tile(x, o_pixel, m_t, o_d, m_d, channels):
    """T pixels of a map, (T, B)."""
    m_x = m_t[:, None] & m_d[None, :]
    return tl.load(x + (o_pixel * channels)[:, None] + o_d[None, :], mask=m_x, other=0.0)


@triton.jit
def load_states(proj, o_pixel, m_t, width_p, n, R: tl.constexpr, N: tl.constexpr, POLICY: tl.constexpr):
    """B and C * ln 2 of state n, each (T, 1) float32. Loads of different policies are not taken to be one."""
    o_which = tl.arange(0, 2)
    o_both = (o_pixel * width_p)[:, None] + (R + n + o_which * N)[None, :]
    b_both = tl.load(proj + o_both, mask=m_t[:, None], other=0.0, eviction_policy=POLICY).to(tl.float32)
    b_B, b_C = tl.split(b_both * tl.where(o_which == 0, 1.0, LN2)[None, :])
    return b_B[:, None], b_C[:, None]


@triton.jit
def row_of(parameter, o_d, m_d):
    """A row (1, B) of a parameter in float32, a lane to a channel."""
    return tl.load(parameter + o_d[None, :], mask=m_d[None, :], other=0.0).to(tl.float32)


@triton.jit
def rates(A, n, o_d, m_d, N: tl.constexpr, LOG_A: tl.constexpr):
    """Row n of A, (1, B)."""
    b_A = row_of(A + n, o_d * N, m_d)
    if LOG_A:
        b_A = -tl.exp2(b_A * LOG2E)
    return b_A


@triton.jit
def latter(a, b):
    return b


@triton.jit
def by_channel(b_x):
    """The tile as it is, laid out for scans: a scan that carries nothing, which takes no instruction."""
    return tl.associative_scan(b_x, 0, latter)


@triton.jit
def backwards(b_x):
    """The tile with its steps in reverse. With all steps of a channel in one thread that takes no instruction, while
    a scan from the end would exchange every value between lanes, twice."""
    T: tl.constexpr = b_x.shape[0]
    B: tl.constexpr = b_x.shape[1]
    b_bits = b_x.to(tl.int32, bitcast=True)
    for i in tl.static_range(6):
        if (2 << i) <= T:
            b_pairs = tl.reshape(b_bits, [T >> (i + 1), 2, B << i])
            b_bits = tl.reshape(tl.sum(b_pairs, 1)[:, None, :] - b_pairs, [T, B])
    return b_bits.to(tl.float32, bitcast=True)


@triton.jit
def softplus(b_z, COEFFICIENTS: tl.constexpr):
    """softplus(z) / ln 2 from z / ln 2."""
    b_e = tl.exp2(-tl.abs(b_z))
    TERMS: tl.constexpr = len(COEFFICIENTS)
    b_poly = COEFFICIENTS[TERMS - 1] * b_e + COEFFICIENTS[TERMS - 2]
    for i in tl.static_range(TERMS - 2):
        b_poly = b_poly * b_e + COEFFICIENTS[TERMS - 3 - i]
    return tl.maximum(b_z, 0.0) + b_e * b_poly


@triton.jit
def step_logit(b_low, b_w, b_bias, T: tl.constexpr, PRECISION: tl.constexpr):
    """z / ln 2, of which softplus makes dt, (T, B).

    Steps behind the end of the walk get a step size too. It does no harm: x and grad_y are zero there, and no step
    that is wanted comes after them.
    """
    b_z = tl.zeros([T, b_bias.shape[1]], tl.float32)
    for i in tl.static_range(len(b_low)):
        b_z = tl.dot(b_low[i].to(tl.float32), b_w[i], b_z, input_precision=PRECISION)
    return by_channel(b_z) + b_bias * LOG2E


@triton.jit
def locate(batch, channels, n_groups, segments, BLOCK_D: tl.constexpr):
    """This program's (image, block of channels, group of routes, segment). Groups are neighbours: they read one x."""
    pid = tl.program_id(0)
    i_s = pid % segments
    pid = pid // segments
    i_g = pid % n_groups
    pid = pid // n_groups
    n_blocks = tl.cdiv(channels, BLOCK_D)
    return (pid // n_blocks).to(tl.int64), pid % n_blocks, i_g, i_s


@triton.jit
def state_at(ends, n, first, last, channels, m_d, N: tl.constexpr, BLOCK_D: tl.constexpr, STEP: tl.constexpr):
    """State n that segments first, first + STEP, ... up to but without `last` of a route leave behind."""
    o_d = tl.arange(0, BLOCK_D)
    b_state = tl.zeros([BLOCK_D], tl.float32)
    for i in range((last - first) * STEP):
        p_end = ends + ((first + i * STEP) * 2 * N + n) * channels
        b_end = tl.load(p_end + o_d, mask=m_d, other=0.0)
        b_state = tl.load(p_end + N * channels + o_d, mask=m_d, other=0.0) * b_state + b_end
    return b_state


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
    LOG_A: tl.constexpr,
):
    """First pass of the chunked form. ADJOINT walks backwards and carries the gradient of the state instead."""
    K: tl.constexpr = len(ROUTES)
    WIDTH_P: tl.constexpr = K * (R + 2 * N)
    length = height * width
    i_b, i_d, i_k, i_s = locate(batch, channels, K, segments, BLOCK_D)
    first = i_d * BLOCK_D
    o_d = tl.arange(0, BLOCK_D)
    m_d = (o_d < channels - first) | EVEN
    route, restart = walk(i_k, height, width, ROUTES)
    line = route[0]
    x += i_b * length * channels + first
    proj += i_b * length * WIDTH_P + i_k * (R + 2 * N)
    ends += ((i_b * K + i_k) * segments + i_s) * 2 * N * channels + first
    dt_weight += (i_k * channels + first) * R
    dt_bias += i_k * channels + first
    A += (i_k * channels + first) * N
    b_w = load_weights(dt_weight, o_d, m_d, R, PIECE)
    b_state = tl.zeros([N_PAD, BLOCK_D], tl.float32)
    b_decays = tl.full([N_PAD, BLOCK_D], 1.0, tl.float32)
    begin = i_s * segment_steps
    tiles = tl.cdiv(tl.minimum(segment_steps, length - begin), T)
    start = begin + (tiles - 1) * T if ADJOINT else begin
    i_line = start // line
    i_step = start - i_line * line
    while tiles > 0:
        tiles -= 1
        o_pixel, m_t, m_begin = pixels(i_line, i_step, route, T, WIDE, EVEN)
        i_line, i_step = back(i_line, i_step, T, line) if ADJOINT else onwards(i_line, i_step, T, line)
        b_low = load_low(proj, o_pixel, m_t, WIDTH_P, R, PIECE)
        b_x = load_tile(x, o_pixel, m_t, o_d, m_d, channels).to(tl.float32)
        b_bias = row_of(dt_bias, o_d, m_d)
        b_dt = softplus(step_logit(b_low, b_w, b_bias, T, PRECISION), COEFFICIENTS)
        for n in range(N):
            b_a = tl.exp2(b_dt * rates(A, n, o_d, m_d, N, LOG_A))
            if RESTART:
                b_a = tl.where((m_begin & restart)[:, None], 0.0, b_a)
            b_B, b_C = load_states(proj, o_pixel, m_t, WIDTH_P, n, R, N, "")
            b_b = b_a * b_x * b_C if ADJOINT else b_dt * b_x * b_B
            if ADJOINT:
                b_a, b_b = backwards(b_a), backwards(b_b)
            b_decay, b_h = tl.associative_scan((b_a, b_b), 0, compose)
            b_h += b_decay * row(b_state, n, N_PAD)[None, :]
            b_state = with_row(b_state, n, row(b_h, T - 1, T), N_PAD)
            b_decays = with_row(b_decays, n, row(b_decays, n, N_PAD) * row(b_decay, T - 1, T), N_PAD)
    o_n = tl.arange(0, N_PAD)
    o_h = (o_n * channels)[:, None] + o_d[None, :]
    m_x = (o_n < N)[:, None] & m_d[None, :]
    tl.store(ends + o_h, b_state, mask=m_x)
    tl.store(ends + N * channels + o_h, b_decays, mask=m_x)


@triton.jit
def forward_kernel(
    x,  # (B, L, D)
    proj,  # (B, L, K * (R + 2 * N))
    dt_weight,  # (K, D, R)
    dt_bias,  # (K, D)
    A,  # (K, D, N); log(-A) if LOG_A
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
    LOG_A: tl.constexpr,
):
    """The scan. A program owns its channels of its partial map, so the routes it walks add up there in place."""
    K: tl.constexpr = len(ROUTES)
    WIDTH_P: tl.constexpr = K * (R + 2 * N)
    length = height * width
    i_b, i_d, i_g, i_s = locate(batch, channels, K // WALKS, segments, BLOCK_D)
    first = i_d * BLOCK_D
    o_d = tl.arange(0, BLOCK_D)
    m_d = (o_d < channels - first) | EVEN
    x += i_b * length * channels + first
    y += (i_g * batch + i_b) * length * channels + first
    o_n = tl.arange(0, N_PAD)
    m_h = (o_n < N)[:, None] & m_d[None, :]
    m_first = (tl.arange(0, T) == 0)[:, None]
    for i in range(WALKS):
        i_k = i_g * WALKS + i
        route, restart = walk(i_k, height, width, ROUTES)
        line = route[0]
        p_proj = proj + (i_b * length * WIDTH_P + i_k * (R + 2 * N))
        p_ends = ends + ((i_b * K + i_k) * segments * 2 * N * channels + first)
        p_carry = carry + ((i_b * K + i_k) * chunks * N * channels + first)
        p_bias = dt_bias + (i_k * channels + first)
        p_skip = skip + (i_k * channels + first)
        p_A = A + (i_k * channels + first) * N
        b_w = load_weights(dt_weight + (i_k * channels + first) * R, o_d, m_d, R, PIECE)
        b_state = tl.zeros([N_PAD, BLOCK_D], tl.float32)
        if i_s > 0:
            for n in range(N):
                b_enters = state_at(p_ends, n, 0, i_s, channels, m_d, N, BLOCK_D, 1)
                b_state = with_row(b_state, n, b_enters, N_PAD)
        start = i_s * segment_steps
        end = tl.minimum(start + segment_steps, length)
        i_line = start // line
        i_step = start - i_line * line
        o_pixel, m_t, m_begin = pixels(i_line, i_step, route, T, WIDE, EVEN)
        b_low = load_low(p_proj, o_pixel, m_t, WIDTH_P, R, PIECE)
        b_x = load_tile(x, o_pixel, m_t, o_d, m_d, channels)
        while start < end:
            if start % CHUNK == 0:
                p_h = p_carry + (start // CHUNK).to(tl.int64) * N * channels
                o_h = (o_n * channels)[:, None] + o_d[None, :]
                tl.store(p_h + o_h, b_state * LN2, mask=m_h)
            o_pixel, m_t, m_begin = pixels(i_line, i_step, route, T, WIDE, EVEN)
            # The next tile is fetched while this one is worked on. At the end that is this one again.
            start += T
            i_line, i_step = onwards(i_line, i_step, tl.where(start < end, T, 0), line)
            o_pixel_next, m_t_next, m_begin_next = pixels(i_line, i_step, route, T, WIDE, EVEN)
            b_low_next = load_low(p_proj, o_pixel_next, m_t_next, WIDTH_P, R, PIECE)
            b_x_next = load_tile(x, o_pixel_next, m_t_next, o_d, m_d, channels)
            o_x = (o_pixel * channels)[:, None] + o_d[None, :]
            m_x = m_t[:, None] & m_d[None, :]
            b_x = b_x.to(tl.float32)
            b_y = tl.zeros([T, BLOCK_D], tl.float32)
            if WALKS > 1:  # a mask, as a branch would cost registers
                b_y = tl.load(y + o_x, mask=m_x & (i > 0), other=0.0).to(tl.float32)
            b_bias = row_of(p_bias, o_d, m_d)
            b_dt = softplus(step_logit(b_low, b_w, b_bias, T, PRECISION), COEFFICIENTS)
            if HAS_SKIP:
                b_y += row_of(p_skip, o_d, m_d) * b_x
            for n in range(N):
                b_a = tl.exp2(b_dt * rates(p_A, n, o_d, m_d, N, LOG_A))
                if RESTART:
                    b_a = tl.where((m_begin & restart)[:, None], 0.0, b_a)
                b_B, b_C = load_states(p_proj, o_pixel, m_t, WIDTH_P, n, R, N, "")
                b_b = b_dt * b_x * b_B
                b_b = tl.where(m_first, b_a * row(b_state, n, N_PAD)[None, :] + b_b, b_b)
                b_decay, b_h = tl.associative_scan((b_a, b_b), 0, compose)
                b_state = with_row(b_state, n, row(b_h, T - 1, T), N_PAD)
                b_y += b_C * b_h
            tl.store(y + o_x, b_y.to(y.dtype.element_ty), mask=m_x)
            b_low = b_low_next
            b_x = b_x_next
        # The next route's loads of y must see this one's stores, whichever thread made them.
        tl.debug_barrier()
