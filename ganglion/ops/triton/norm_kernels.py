"""The kernels of `add_norm`: LayerNorm of every pixel, and GroupNorm with one group, after a sum with another map.

Work. A tile is ROWS pixels by WIDTH channels, padded to powers of two. `pixel_*`: a program takes tiles of any image,
and normalises each row by itself. `image_*`: an image is cut into `parts` programs; what they find of it lies in memory
in between, so that there are two launches, unless an image is a single tile (WHOLE).

Sums over pixels, the gradients of what has one value a channel, are kept for each program and added up afterwards, so
that they are the same in every run. A program keeps a tile of them until its end: rows of a tile lie in several warps.

Names. b_x: a tile or a row in registers. s_: a sum. o_, m_: offsets and masks. p_x: a pointer. n_: a count. total: x
(times a scale plus a shift) plus what is added, which is what is normalised. p_statistics: the means of all that is
normalised by itself, then 1 / its standard deviations.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def channel_values(p_values, o_c, m_c, default: tl.constexpr, PRESENT: tl.constexpr):
    """A value for each channel, as a row."""
    b = tl.full(o_c.shape, default, tl.float32)
    if PRESENT:
        b = tl.load(p_values + o_c, mask=m_c, other=default).to(tl.float32)
    return b[None, :]


@triton.jit
def total_of(p_x, p_add, p_total, b_scale, b_shift, o, m, ADD: tl.constexpr, SCALE: tl.constexpr):
    """What is normalised, 0 where there is none: stored where it is a sum, and as it was stored."""
    b = tl.load(p_x + o, mask=m, other=0.0).to(tl.float32)
    if SCALE:
        b = tl.where(m, b * b_scale + b_shift, 0.0)
    if ADD:
        b += tl.load(p_add + o, mask=m, other=0.0).to(tl.float32)
        stored = b.to(p_total.dtype.element_ty)
        tl.store(p_total + o, stored, mask=m)
        b = stored.to(tl.float32)
    return b


@triton.jit
def pixel_forward_kernel(
    p_x,
    p_add,
    p_scale,
    p_shift,
    p_weight,
    p_bias,
    p_y,
    p_total,
    p_statistics,
    n_rows,
    n_channels,
    eps,
    ADD: tl.constexpr,
    SCALE: tl.constexpr,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    o_r = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    o_c = tl.arange(0, WIDTH)
    m_r, m_c = o_r < n_rows, o_c < n_channels
    m = m_r[:, None] & m_c[None, :]
    o = o_r[:, None] * n_channels + o_c[None, :]
    b_scale = channel_values(p_scale, o_c, m_c, 1.0, SCALE)
    b_shift = channel_values(p_shift, o_c, m_c, 0.0, SCALE)
    b = total_of(p_x, p_add, p_total, b_scale, b_shift, o, m, ADD, SCALE)
    mean = tl.sum(b, 1) / n_channels
    b = tl.where(m, b - mean[:, None], 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(b * b, 1) / n_channels + eps)
    b_weight = channel_values(p_weight, o_c, m_c, 1.0, WEIGHT)
    b_bias = channel_values(p_bias, o_c, m_c, 0.0, BIAS)
    b = b * rstd[:, None] * b_weight + b_bias
    tl.store(p_y + o, b.to(p_y.dtype.element_ty), mask=m)
    tl.store(p_statistics + o_r, mean, mask=m_r)
    tl.store(p_statistics + n_rows + o_r, rstd, mask=m_r)


@triton.jit
def pixel_backward_kernel(
    p_grad_y,
    p_grad_total,
    p_total,
    p_x,
    p_scale,
    p_weight,
    p_statistics,
    p_grad_x,
    p_grad_add,
    p_sums,
    n_rows,
    n_channels,
    n_tiles,
    GRAD_TOTAL: tl.constexpr,
    SCALE: tl.constexpr,
    GRAD_ADD: tl.constexpr,
    WEIGHT: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Of n_tiles consecutive tiles. p_sums: (programs, 4, C), of the gradients of weight, bias, scale and shift."""
    program = tl.program_id(0).to(tl.int64)
    o_c = tl.arange(0, WIDTH)
    m_c = o_c < n_channels
    b_scale = channel_values(p_scale, o_c, m_c, 1.0, SCALE)
    b_weight = channel_values(p_weight, o_c, m_c, 1.0, WEIGHT)
    s_weight = tl.zeros((ROWS, WIDTH), tl.float32)
    s_bias = tl.zeros((ROWS, WIDTH), tl.float32)
    s_scale = tl.zeros((ROWS, WIDTH), tl.float32)
    s_shift = tl.zeros((ROWS, WIDTH), tl.float32)
    for tile in range(n_tiles):
        o_r = (program * n_tiles + tile) * ROWS + tl.arange(0, ROWS)
        m_r = o_r < n_rows
        m = m_r[:, None] & m_c[None, :]
        o = o_r[:, None] * n_channels + o_c[None, :]
        mean = tl.load(p_statistics + o_r, mask=m_r, other=0.0)[:, None]
        rstd = tl.load(p_statistics + n_rows + o_r, mask=m_r, other=0.0)[:, None]
        b_hat = (tl.load(p_total + o, mask=m, other=0.0).to(tl.float32) - mean) * rstd
        b_hat = tl.where(m, b_hat, 0.0)
        b_grad = tl.load(p_grad_y + o, mask=m, other=0.0).to(tl.float32)
        s_weight += b_grad * b_hat
        s_bias += b_grad
        b_grad *= b_weight
        along = tl.sum(b_grad * b_hat, 1) / n_channels
        level = tl.sum(b_grad, 1) / n_channels
        b_grad = (b_grad - b_hat * along[:, None] - level[:, None]) * rstd
        if GRAD_TOTAL:
            b_grad += tl.load(p_grad_total + o, mask=m, other=0.0).to(tl.float32)
        if GRAD_ADD:
            tl.store(p_grad_add + o, b_grad.to(p_grad_add.dtype.element_ty), mask=m)
        if SCALE:
            b_grad = tl.where(m, b_grad, 0.0)
            s_scale += b_grad * tl.load(p_x + o, mask=m, other=0.0).to(tl.float32)
            s_shift += b_grad
            b_grad *= b_scale
        tl.store(p_grad_x + o, b_grad.to(p_grad_x.dtype.element_ty), mask=m)
    p_sums += program * 4 * n_channels + o_c
    tl.store(p_sums, tl.sum(s_weight, 0), mask=m_c)
    tl.store(p_sums + n_channels, tl.sum(s_bias, 0), mask=m_c)
    if SCALE:
        tl.store(p_sums + 2 * n_channels, tl.sum(s_scale, 0), mask=m_c)
        tl.store(p_sums + 3 * n_channels, tl.sum(s_shift, 0), mask=m_c)


@triton.jit
def image_of(parts):
    """Which image a program works on, which part of it."""
    program = tl.program_id(0)
    return (program // parts).to(tl.int64), program % parts


@triton.jit
def images_of(parts):
    """How many images there are."""
    return tl.num_programs(0) // parts


@triton.jit
def image_statistics_kernel(
    p_x,
    p_add,
    p_scale,
    p_shift,
    p_weight,
    p_bias,
    p_y,
    p_total,
    p_statistics,
    p_found,
    n_rows,
    n_channels,
    n_tiles,
    parts,
    eps,
    ADD: tl.constexpr,
    SCALE: tl.constexpr,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    WHOLE: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """The sums, and of every part mean and squared distance from it, p_found (B, parts, 2). All of it if WHOLE.

    n_rows: pixels of an image.
    """
    image, part = image_of(parts)
    o_c = tl.arange(0, WIDTH)
    m_c = o_c < n_channels
    b_scale = channel_values(p_scale, o_c, m_c, 1.0, SCALE)
    b_shift = channel_values(p_shift, o_c, m_c, 0.0, SCALE)
    first = image * n_rows * n_channels
    if WHOLE:
        o_r = tl.arange(0, ROWS)
        m = (o_r < n_rows)[:, None] & m_c[None, :]
        o = first + o_r[:, None] * n_channels + o_c[None, :]
        b = total_of(p_x, p_add, p_total, b_scale, b_shift, o, m, ADD, SCALE)
        n = n_rows * n_channels
        mean = tl.sum(b) / n
        b = tl.where(m, b - mean, 0.0)
        rstd = 1.0 / tl.sqrt(tl.sum(b * b) / n + eps)
        b_weight = channel_values(p_weight, o_c, m_c, 1.0, WEIGHT)
        b_bias = channel_values(p_bias, o_c, m_c, 0.0, BIAS)
        tl.store(p_y + o, (b * rstd * b_weight + b_bias).to(p_y.dtype.element_ty), mask=m)
        tl.store(p_statistics + image, mean)
        tl.store(p_statistics + images_of(parts) + image, rstd)
    else:
        n_before = 0.0
        mean = 0.0
        spread = 0.0
        for tile in range(n_tiles):
            o_r = (part * n_tiles + tile) * ROWS + tl.arange(0, ROWS)
            m = (o_r < n_rows)[:, None] & m_c[None, :]
            o = first + o_r.to(tl.int64)[:, None] * n_channels + o_c[None, :]
            b = total_of(p_x, p_add, p_total, b_scale, b_shift, o, m, ADD, SCALE)
            n = tl.maximum(tl.minimum(n_rows - (part * n_tiles + tile) * ROWS, ROWS), 0) * n_channels
            n = n.to(tl.float32)
            # A tile beyond the image has no elements, and changes nothing.
            tile_mean = tl.sum(b) / tl.maximum(n, 1.0)
            b = tl.where(m, b - tile_mean, 0.0)
            n_both = tl.maximum(n_before + n, 1.0)
            away = tile_mean - mean
            mean += away * (n / n_both)
            spread += tl.sum(b * b) + away * away * (n_before * n / n_both)
            n_before += n
        p_found += (image * parts + part) * 2
        tl.store(p_found, mean)
        tl.store(p_found + 1, spread)


@triton.jit
def image_forward_kernel(
    p_total,
    p_weight,
    p_bias,
    p_found,
    p_y,
    p_statistics,
    n_rows,
    n_channels,
    n_tiles,
    parts,
    eps,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Normalises a part, with what all parts of its image found. PARTS: `parts`, padded to a power of two."""
    image, part = image_of(parts)
    o_p = tl.arange(0, PARTS)
    m_p = o_p < parts
    found = p_found + (image * parts + o_p) * 2
    n = tl.maximum(tl.minimum(n_rows - o_p * n_tiles * ROWS, n_tiles * ROWS), 0).to(tl.float32) * n_channels
    n = tl.where(m_p, n, 0.0)
    means = tl.load(found, mask=m_p, other=0.0)
    n_all = tl.sum(n)
    mean = tl.sum(n * means) / n_all
    away = means - mean
    spread = tl.sum(tl.load(found + 1, mask=m_p, other=0.0) + n * away * away)
    rstd = 1.0 / tl.sqrt(spread / n_all + eps)
    if part == 0:
        tl.store(p_statistics + image, mean)
        tl.store(p_statistics + images_of(parts) + image, rstd)
    o_c = tl.arange(0, WIDTH)
    m_c = o_c < n_channels
    b_weight = channel_values(p_weight, o_c, m_c, 1.0, WEIGHT) * rstd
    b_bias = channel_values(p_bias, o_c, m_c, 0.0, BIAS)
    for tile in range(n_tiles):
        o_r = (part * n_tiles + tile) * ROWS + tl.arange(0, ROWS)
        m = (o_r < n_rows)[:, None] & m_c[None, :]
        o = (image * n_rows + o_r)[:, None] * n_channels + o_c[None, :]
        b = tl.load(p_total + o, mask=m, other=0.0).to(tl.float32)
        tl.store(p_y + o, ((b - mean) * b_weight + b_bias).to(p_y.dtype.element_ty), mask=m)


@triton.jit
def image_products_kernel(
    p_grad_y,
    p_total,
    p_weight,
    p_statistics,
    p_found,
    p_sums,
    n_rows,
    n_channels,
    n_tiles,
    parts,
    WEIGHT: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Of every part, the sums of grad_y * weight along the normalised map and by itself, p_found (B, parts, 2), and of
    the gradients of weight and bias, the first half of p_sums (B, parts, 4, C)."""
    image, part = image_of(parts)
    mean = tl.load(p_statistics + image)
    rstd = tl.load(p_statistics + images_of(parts) + image)
    o_c = tl.arange(0, WIDTH)
    m_c = o_c < n_channels
    s_weight = tl.zeros((ROWS, WIDTH), tl.float32)
    s_bias = tl.zeros((ROWS, WIDTH), tl.float32)
    for tile in range(n_tiles):
        o_r = (part * n_tiles + tile) * ROWS + tl.arange(0, ROWS)
        m = (o_r < n_rows)[:, None] & m_c[None, :]
        o = (image * n_rows + o_r)[:, None] * n_channels + o_c[None, :]
        b_hat = (tl.load(p_total + o, mask=m, other=0.0).to(tl.float32) - mean) * rstd
        b_grad = tl.load(p_grad_y + o, mask=m, other=0.0).to(tl.float32)
        s_weight += b_grad * b_hat
        s_bias += b_grad
    program = image * parts + part
    o_sums = program * 4 * n_channels + o_c
    tl.store(p_sums + o_sums, tl.sum(s_weight, 0), mask=m_c)
    tl.store(p_sums + o_sums + n_channels, tl.sum(s_bias, 0), mask=m_c)
    b_weight = channel_values(p_weight, o_c, m_c, 1.0, WEIGHT)
    tl.store(p_found + program * 2, tl.sum(s_weight * b_weight))
    tl.store(p_found + program * 2 + 1, tl.sum(s_bias * b_weight))


@triton.jit
def image_backward_kernel(
    p_grad_y,
    p_grad_total,
    p_total,
    p_x,
    p_scale,
    p_weight,
    p_statistics,
    p_found,
    p_grad_x,
    p_grad_add,
    p_sums,
    n_rows,
    n_channels,
    n_tiles,
    parts,
    GRAD_TOTAL: tl.constexpr,
    SCALE: tl.constexpr,
    GRAD_ADD: tl.constexpr,
    WEIGHT: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    image, part = image_of(parts)
    mean = tl.load(p_statistics + image)
    rstd = tl.load(p_statistics + images_of(parts) + image)
    o_p = tl.arange(0, PARTS)
    found = p_found + (image * parts + o_p) * 2
    n = n_rows * n_channels
    along = tl.sum(tl.load(found, mask=o_p < parts, other=0.0)) / n
    level = tl.sum(tl.load(found + 1, mask=o_p < parts, other=0.0)) / n
    o_c = tl.arange(0, WIDTH)
    m_c = o_c < n_channels
    b_scale = channel_values(p_scale, o_c, m_c, 1.0, SCALE)
    b_weight = channel_values(p_weight, o_c, m_c, 1.0, WEIGHT)
    s_scale = tl.zeros((ROWS, WIDTH), tl.float32)
    s_shift = tl.zeros((ROWS, WIDTH), tl.float32)
    for tile in range(n_tiles):
        o_r = (part * n_tiles + tile) * ROWS + tl.arange(0, ROWS)
        m = (o_r < n_rows)[:, None] & m_c[None, :]
        o = (image * n_rows + o_r)[:, None] * n_channels + o_c[None, :]
        b_hat = (tl.load(p_total + o, mask=m, other=0.0).to(tl.float32) - mean) * rstd
        b_grad = tl.load(p_grad_y + o, mask=m, other=0.0).to(tl.float32) * b_weight
        b_grad = (b_grad - b_hat * along - level) * rstd
        if GRAD_TOTAL:
            b_grad += tl.load(p_grad_total + o, mask=m, other=0.0).to(tl.float32)
        if GRAD_ADD:
            tl.store(p_grad_add + o, b_grad.to(p_grad_add.dtype.element_ty), mask=m)
        if SCALE:
            b_grad = tl.where(m, b_grad, 0.0)
            s_scale += b_grad * tl.load(p_x + o, mask=m, other=0.0).to(tl.float32)
            s_shift += b_grad
            b_grad *= b_scale
        tl.store(p_grad_x + o, b_grad.to(p_grad_x.dtype.element_ty), mask=m)
    if SCALE:
        o_sums = (image * parts + part) * 4 * n_channels + o_c
        tl.store(p_sums + o_sums + 2 * n_channels, tl.sum(s_scale, 0), mask=m_c)
        tl.store(p_sums + o_sums + 3 * n_channels, tl.sum(s_shift, 0), mask=m_c)
