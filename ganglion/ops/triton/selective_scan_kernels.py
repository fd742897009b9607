"""Kernels of the 1-D scan: device functions shared by them, the forward pass and the two passes that join segments.

Layout. A program is one warp that owns BLOCK_D channels of a group and walks a segment of their steps in tiles of T.
A tile comes from memory with neighbouring lanes on neighbouring bytes, whichever axis that is. The recurrence of a
state runs with a lane to a channel and all T steps of a channel in one thread, as that of `kernels`, from which the
device functions come; there it says how the compiler is brought to this layout.

States are taken one after another. What one of them is between two tiles lies in memory, a row of BLOCK_D numbers that
is read and written once in T steps and stays in the first-level cache. So the number of states costs no registers and
is known at run time only.

Units. Step sizes are kept as d = dt / ln 2, so that softplus and decay are exp2.

Names: p_ pointer, s_ strides, i_ index, o_ offsets, m_ mask, b_ a tile or a row of one in registers. Shape letters:
T steps of a tile, B a program's channels; N d_state, D all channels, G groups, L steps.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .kernels import LN2, LOG2E, backwards, by_channel, compose, row, row_of, softplus


@triton.jit
def locate(groups, slices, segments):
    """This program's (batch, group, slice of the group's blocks, segment)."""
    pid = tl.program_id(0)
    i_s = pid % segments
    pid = pid // segments
    i_slice = pid % slices
    pid = pid // slices
    return (pid // groups).to(tl.int64), pid % groups, i_slice, i_s


@triton.jit
def steps(T: tl.constexpr, WIDE: tl.constexpr):
    """Steps of a tile from its first on."""
    return tl.arange(0, T).to(tl.int64) if WIDE else tl.arange(0, T)


@triton.jit
def lanes(i_block, group_channels, BLOCK_D: tl.constexpr, EVEN_D: tl.constexpr, WIDE: tl.constexpr):
    """Channels of a block from its first on, and which of them are in the group."""
    o_d = tl.arange(0, BLOCK_D)
    m_d = (o_d < group_channels - i_block * BLOCK_D) | EVEN_D
    return o_d.to(tl.int64) if WIDE else o_d, m_d


@triton.jit
def strides(s_x, s_first, ALIKE: tl.constexpr):
    """The strides s_x. If channels and steps of all sequences are alike, then those of the first: offsets that are
    known to be the same share registers."""
    return (s_x[0], s_first[1], s_first[2]) if ALIKE else s_x


@triton.jit
def begin(p_x, s_x, i_b, i_d):
    """Where a channel of a sequence (B, D, L) begins."""
    return p_x + (i_b * s_x[0] + i_d.to(tl.int64) * s_x[1])


@triton.jit
def begin_weights(p_w, s_w, i_b, i_g, i_d, CONSTANT: tl.constexpr):
    """Where B or C begins: constant (N, D) at a channel, else (B, G, N, L) at a group."""
    return p_w + i_d if CONSTANT else p_w + (i_b * s_w[0] + i_g.to(tl.int64) * s_w[1])


@triton.jit
def load_tile(p_x, s_x, i_t, o_t, o_d, mask):
    """A tile (T, B) from step i_t on."""
    here = p_x + tl.cast(i_t, tl.int64) * s_x[2]
    return tl.load(here + (o_t[:, None] * s_x[2] + o_d[None, :] * s_x[1]), mask=mask, other=0.0)


@triton.jit
def store_tile(p_x, s_x, i_t, o_t, o_d, mask, b_x):
    """A tile (T, B) to step i_t on."""
    here = p_x + tl.cast(i_t, tl.int64) * s_x[2]
    here = here + (o_t[:, None] * s_x[2] + o_d[None, :] * s_x[1])
    tl.store(here, b_x.to(p_x.dtype.element_ty), mask=mask)


@triton.jit
def load_weight(p_w, s_w, n, channels, i_t, o_t, m_t, o_d, m_d, CONSTANT: tl.constexpr):
    """B or C of state n, float32: (1, B) if constant, else (T, 1)."""
    if CONSTANT:
        b_w = row_of(p_w + n * channels, o_d, m_d)
    else:
        here = p_w + (tl.cast(n, tl.int64) * s_w[2] + tl.cast(i_t, tl.int64) * s_w[3])
        b_w = tl.load(here + (o_t * s_w[3])[:, None], mask=m_t[:, None], other=0.0).to(tl.float32)
    return b_w


@triton.jit
def step_sizes(b_v, mask, SOFTPLUS: tl.constexpr, COEFFICIENTS: tl.constexpr, EVEN: tl.constexpr):
    """d (T, B) from what softplus makes it of. Zero outside, where nothing then happens to a state."""
    b_v *= LOG2E
    b_d = softplus(b_v, COEFFICIENTS) if SOFTPLUS else b_v
    return b_d if EVEN else tl.where(mask, b_d, 0.0)


@triton.jit
def segment_kernel(
    x,  # (B, D, L): u, or the gradient of y if ADJOINT
    delta,  # (B, D, L)
    z,  # (B, D, L), read if HAS_GATE and ADJOINT
    weight,  # B, or C if ADJOINT: (B, G, N, L) or constant (N, D)
    A,  # (N, D), and after it the bias (D,) if HAS_BIAS
    state,  # out (B, segments, N, D): what a segment leaves when it is entered with zero
    total,  # out (B, segments, D): the sum of d
    s_x,
    s_delta,
    s_z,
    s_weight,
    length,
    channels,
    groups,
    states,
    segments,
    segment_steps,
    ADJOINT: tl.constexpr,
    HAS_GATE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    CONSTANT: tl.constexpr,
    T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    COEFFICIENTS: tl.constexpr,
    EVEN_D: tl.constexpr,
    EVEN: tl.constexpr,
    WIDE: tl.constexpr,
    ALIKE: tl.constexpr,
):
    """First pass of the chunked form. ADJOINT walks backwards and carries the gradient of the state instead."""
    s_delta, s_z = strides(s_delta, s_x, ALIKE), strides(s_z, s_x, ALIKE)
    group_channels = channels // groups
    i_b, i_g, i_block, i_s = locate(groups, tl.cdiv(group_channels, BLOCK_D), segments)
    o_d, m_d = lanes(i_block, group_channels, BLOCK_D, EVEN_D, WIDE)
    i_d = i_g * group_channels + i_block * BLOCK_D
    o_t = steps(T, WIDE)
    p_A = A + i_d
    p_x = begin(x, s_x, i_b, i_d)
    p_delta = begin(delta, s_delta, i_b, i_d)
    p_z = begin(z, s_z, i_b, i_d)
    p_weight = begin_weights(weight, s_weight, i_b, i_g, i_d, CONSTANT)
    p_state = state + ((i_b * segments + i_s) * states * channels + i_d)
    b_total = tl.zeros([BLOCK_D], tl.float32)
    i_begin = i_s * segment_steps
    tiles = tl.cdiv(tl.minimum(segment_steps, length - i_begin), T)
    for i in range(tiles):
        i_t = i_begin + (tiles - 1 - i if ADJOINT else i) * T
        m_t = (o_t < length - i_t) | EVEN
        mask = m_t[:, None] & m_d[None, :]
        b_x = load_tile(p_x, s_x, i_t, o_t, o_d, mask).to(tl.float32)
        if HAS_GATE and ADJOINT:
            b_z = load_tile(p_z, s_z, i_t, o_t, o_d, mask).to(tl.float32)
            b_x *= b_z * tl.sigmoid(b_z)
        b_v = load_tile(p_delta, s_delta, i_t, o_t, o_d, mask).to(tl.float32)
        if HAS_BIAS:
            b_v += row_of(p_A + states * channels, o_d, m_d)
        b_d = by_channel(step_sizes(b_v, mask, SOFTPLUS, COEFFICIENTS, EVEN))
        b_total += tl.sum(b_d, 0)
        b_x = by_channel(b_x if ADJOINT else b_d * LN2 * b_x)
        for n in range(states):
            b_A = row_of(p_A + n * channels, o_d, m_d)
            b_enter = row_of(p_state + n * channels, o_d, m_d & (i > 0))
            b_w = load_weight(p_weight, s_weight, n, channels, i_t, o_t, m_t, o_d, m_d, CONSTANT)
            b_a = tl.exp2(b_d * b_A)
            b_b = b_x * b_w
            if ADJOINT:
                b_a, b_b = backwards(b_a), backwards(b_a * b_b)
            b_b = tl.where((o_t == 0)[:, None], b_a * b_enter + b_b, b_b)
            b_decay, b_h = tl.associative_scan((b_a, b_b), 0, compose)
            tl.store(p_state + n * channels + o_d, row(b_h, T - 1, T), mask=m_d)
        # The next tile reads the states, whichever thread wrote them.
        tl.debug_barrier()
    tl.store(total + ((i_b * segments + i_s) * channels + i_d) + o_d, b_total, mask=m_d)


@triton.jit
def join_kernel(
    first,  # (B, N, D): what enters the first segment
    A,  # (N, D)
    total,  # (B, segments, D), see segment_kernel
    state,  # (B, segments, N, D): what segments leave when entered with zero; out: what enters them
    channels,
    states,
    segments,
    ADJOINT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Second pass of the chunked form: from segment to segment, or from the last to the first if ADJOINT."""
    size = states * channels
    blocks = tl.cdiv(size, BLOCK)
    i_b = (tl.program_id(0) // blocks).to(tl.int64)
    o_i = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    mask = o_i < size
    b_A = tl.load(A + o_i, mask=mask, other=0.0)
    b_h = tl.load(first + i_b * size + o_i, mask=mask, other=0.0)
    for i in range(segments):
        i_s = i_b * segments + (segments - 1 - i if ADJOINT else i)
        b_left = tl.load(state + i_s * size + o_i, mask=mask, other=0.0)
        b_total = tl.load(total + i_s * channels + o_i % channels, mask=mask, other=0.0)
        tl.store(state + i_s * size + o_i, b_h, mask=mask)
        b_h = tl.fma(tl.exp2(b_total * b_A), b_h, b_left)


@triton.jit
def forward_kernel(
    u,  # (B, D, L)
    delta,  # (B, D, L)
    B,  # (B, G, N, L), or constant (N, D)
    C,  # likewise
    z,  # (B, D, L), read if HAS_GATE
    A,  # (N, D), and after it the bias (D,) if HAS_BIAS, the skip (D,) if HAS_SKIP
    y,  # out (B, D, L)
    state,  # in and out (B, segments, N, D): before and after a segment
    carry,  # out (B, chunks, N, D)
    s_u,
    s_delta,
    s_B,
    s_C,
    s_z,
    s_y,
    length,
    channels,
    groups,
    states,
    segments,
    segment_steps,
    chunks,
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
    EVEN_D: tl.constexpr,
    EVEN: tl.constexpr,
    WIDE: tl.constexpr,
    ALIKE: tl.constexpr,
):
    """The scan."""
    s_delta, s_z, s_y = strides(s_delta, s_u, ALIKE), strides(s_z, s_u, ALIKE), strides(s_y, s_u, ALIKE)
    group_channels = channels // groups
    i_b, i_g, i_block, i_s = locate(groups, tl.cdiv(group_channels, BLOCK_D), segments)
    o_d, m_d = lanes(i_block, group_channels, BLOCK_D, EVEN_D, WIDE)
    i_d = i_g * group_channels + i_block * BLOCK_D
    o_t = steps(T, WIDE)
    p_A = A + i_d
    p_u = begin(u, s_u, i_b, i_d)
    p_delta = begin(delta, s_delta, i_b, i_d)
    p_z = begin(z, s_z, i_b, i_d)
    p_y = begin(y, s_y, i_b, i_d)
    p_B = begin_weights(B, s_B, i_b, i_g, i_d, CONSTANT_B)
    p_C = begin_weights(C, s_C, i_b, i_g, i_d, CONSTANT_C)
    p_state = state + ((i_b * segments + i_s) * states * channels + i_d)
    p_carry = carry + (i_b * chunks * states * channels + i_d)
    i_begin = i_s * segment_steps
    tiles = tl.cdiv(tl.minimum(segment_steps, length - i_begin), T)
    for i in range(tiles):
        i_t = i_begin + i * T
        m_t = (o_t < length - i_t) | EVEN
        mask = m_t[:, None] & m_d[None, :]
        b_u = load_tile(p_u, s_u, i_t, o_t, o_d, mask).to(tl.float32)
        b_v = load_tile(p_delta, s_delta, i_t, o_t, o_d, mask).to(tl.float32)
        if HAS_BIAS:
            b_v += row_of(p_A + states * channels, o_d, m_d)
        b_d = by_channel(step_sizes(b_v, mask, SOFTPLUS, COEFFICIENTS, EVEN))
        b_dx = by_channel(b_d * LN2 * b_u)
        b_y = tl.zeros([T, BLOCK_D], tl.float32)
        if HAS_SKIP:
            b_y += row_of(p_A + (states + HAS_BIAS) * channels, o_d, m_d) * b_u
        p_record = p_carry + (i_t // CHUNK).to(tl.int64) * states * channels
        for n in range(states):
            b_A = row_of(p_A + n * channels, o_d, m_d)
            b_enter = row_of(p_state + n * channels, o_d, m_d)
            tl.store(p_record + n * channels + o_d[None, :], b_enter, mask=m_d[None, :] & (i_t % CHUNK == 0))
            b_B = load_weight(p_B, s_B, n, channels, i_t, o_t, m_t, o_d, m_d, CONSTANT_B)
            b_C = load_weight(p_C, s_C, n, channels, i_t, o_t, m_t, o_d, m_d, CONSTANT_C)
            b_a = tl.exp2(b_d * b_A)
            b_b = b_dx * b_B
            b_b = tl.where((o_t == 0)[:, None], b_a * b_enter + b_b, b_b)
            b_decay, b_h = tl.associative_scan((b_a, b_b), 0, compose)
            tl.store(p_state + n * channels + o_d, row(b_h, T - 1, T), mask=m_d)
            b_y += b_C * b_h
        if HAS_GATE:
            b_z = load_tile(p_z, s_z, i_t, o_t, o_d, mask).to(tl.float32)
            b_y *= b_z * tl.sigmoid(b_z)
        store_tile(p_y, s_y, i_t, o_t, o_d, mask, b_y)
        # The next tile reads the states, whichever thread wrote them.
        tl.debug_barrier()
