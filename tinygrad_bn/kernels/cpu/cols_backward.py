"""The backward pass of the family *cols*: its steps are sums, factors, dx."""

from __future__ import annotations

import numpy as np
from numba import prange

from .jit import DOUBLE, FLAG, FLAGS, INT, allocating, body, read, task, twins, write
from .stores import fence, write_out
from .sums import contract, expand, fits, is_finite, limits_of, reliable, times_rest
from .tiles import LAYOUT, NARROW, WIDE, add_tiles, block_of, gather, spread, tile_of


@allocating
def tile_sums(zero, tile, layout, cotangent, x, mean, sums):
    """The sums of cotangent and of cotangent * (x − mean) over each channel of a tile, the mean in x's dtype.

    Whether the dtype of x was wide enough for it is returned.
    """
    limits = limits_of(x)
    z, t, a, b, c, d = tile_of(tile, x, layout)
    M, repeat, members, width, _columns = layout
    B = repeat * members
    centre = np.empty(d - c, type(zero))
    spread(mean[z * (M // B) : (z + 1) * (M // B)], B, layout, c, d, centre)
    for j in range(centre.size):
        centre[j] = x.dtype.type(centre[j])
    total, moment = np.full(d - c, zero), np.full(d - c, zero)
    for r in range(a, b):
        g, row = cotangent[z, r * width + c : r * width + d], x[z, r * width + c : r * width + d]
        for j in range(g.size):
            total[j] += g[j]
            moment[j] += g[j] * (row[j] - centre[j])
    gather(total, layout, c, sums[z, t, 0])
    gather(moment, layout, c, sums[z, t, 1])
    k, end = c // repeat, min(d, M) // repeat
    totals, moments = sums[z, t, 0, k:end], sums[z, t, 1, k:end]
    outside = 0
    for j in range(totals.size):
        if not (is_finite(totals[j]) and reliable(moments[j], limits)):
            outside += 1
    return outside == 0


@allocating
def backward_factors(block, x, layout, training, weight, mean, rstd, sums, factors):
    """Of each channel of a block, so that dx is cotangent · factor 1 + (x − factor 0) · factor 2 + factor 3,
    in inference without x. The sums of the first tile become those of dbias and dweight of its z.

    Whether the dtype of x is wide enough for dx is returned.
    """
    limits = limits_of(x)
    M, repeat, members, _width, _columns = layout
    z, k, end, s, last = block_of(block, x, layout)
    n = x.shape[1] // M * repeat * members
    i = z * (M // (repeat * members)) + s
    means, rstds = mean[i : i + last - s], rstd[i : i + last - s]
    plain, moments = add_tiles(z, k, end, sums)
    centre, scale = factors[z, 0, k:end], factors[z, 1, k:end]
    slope, shift, weights = factors[z, 2, k:end], factors[z, 3, k:end], weight[k:end]
    expand(means, members, centre)
    expand(rstds, members, scale)
    outside = 0
    for j in range(centre.size):
        rounded = x.dtype.type(centre[j])
        moments[j] = (moments[j] + times_rest(rounded - centre[j], plain[j])) * scale[j]
        slope[j] = weights[j] * moments[j]
        shift[j] = weights[j] * plain[j]
        factor = scale[j] * weights[j]
        if not (reliable(scale[j], limits) and (reliable(factor, limits) or weights[j] == 0)):
            outside += 1
        centre[j] = rounded
        scale[j] = factor
    along, offset = np.empty(last - s), np.empty(last - s)
    contract(slope, members, along)
    contract(shift, members, offset)
    for j in range(along.size):
        along[j] *= -rstds[j] * rstds[j] / n
        offset[j] = times_rest(x.dtype.type(means[j]) - means[j], along[j]) - rstds[j] * offset[j] / n
        if training and not (fits(along[j], limits) and abs(offset[j]) < limits[1]):
            outside += 1
    expand(along, members, slope)
    expand(offset, members, shift)
    return outside == 0


@allocating
def differentiate_tile(zero, tile, layout, training, cotangent, x, factors, past, dx):
    z, _t, a, b, c, d = tile_of(tile, x, layout)
    _M, repeat, _members, width, _columns = layout
    rows = np.empty((4, d - c), type(zero))
    for p in range(4):
        spread(factors[z, p], repeat, layout, c, d, rows[p])
    centre, scale, slope, shift = rows[0], rows[1], rows[2], rows[3]
    room = np.empty(d - c, x.dtype)
    for r in range(a, b):
        g = cotangent[z, r * width + c : r * width + d]
        row = x[z, r * width + c : r * width + d]
        place = dx[z, r * width + c : r * width + d]
        out = room[: row.size] if past else place
        if training:
            for j in range(g.size):
                out[j] = g[j] * scale[j] + ((row[j] - centre[j]) * slope[j] + shift[j])
        else:
            for j in range(g.size):
                out[j] = g[j] * scale[j]
        write_out(past, out, place)
    if past:
        fence()


@body
def backward_step(
    step, number, layout, need, training, cotangent, x, weight, mean, rstd, factors, sums, state, past, dx
):
    """A step of one tile, or of one block of tiles: sums, factors, dx; all of a block that is one tile."""
    zero = x.dtype.type(0)
    need_x, need_affine = need
    down = sums.shape[1]
    block = number if step == 1 else number // down
    for each in range(step, 3 if down == 1 else step + 1):
        if each == 0:
            if (training or need_affine) and not tile_sums(zero, number, layout, cotangent, x, mean, sums):
                tile_sums(0.0, number, layout, cotangent, x, mean, sums)
        elif each == 1:
            good = backward_factors(block, x, layout, training, weight, mean, rstd, sums, factors)
            state[block] = NARROW if good else WIDE
        elif need_x and state[block] == WIDE:
            differentiate_tile(0.0, number, layout, training, cotangent, x, factors, past, dx)
        elif need_x:
            differentiate_tile(zero, number, layout, training, cotangent, x, factors, past, dx)


def backward_types(T):
    return (
        *(LAYOUT, FLAGS, FLAG, read(T, 2), read(T, 2), read(T, 1), read(DOUBLE, 2)),
        *(write(DOUBLE, 3), write(DOUBLE, 4), write(INT, 1), FLAG, write(T, 2), write(DOUBLE, 3)),
    )


@task(backward_types, numbers=3)
def backward_task(
    first,
    step,
    number,
    layout,
    need,
    training,
    cotangent,
    x,
    weight,
    statistics,
    factors,
    sums,
    state,
    past,
    dx,
    totals,
):
    last = min(first + factors.shape[0], x.shape[0])
    each = statistics.shape[1] // x.shape[0]
    a, b = first * each, last * each
    backward_step(
        *(step, number, layout, need, training, cotangent[first:last], x[first:last], weight),
        *(statistics[0, a:b], statistics[2, a:b], factors, sums, state, past, dx[first:last]),
    )


@task(backward_types, numbers=1)
def add_sums(
    first, layout, need, training, cotangent, x, weight, statistics, factors, sums, state, past, dx, totals
):
    """Add the sums of the z of a batch to the totals."""
    for z in range(min(factors.shape[0], x.shape[0] - first)):
        for p in range(2):
            total, piece = totals[1 - p, 0], sums[z, 0, p]
            for j in range(piece.size):
                total[j] += piece[j]


@twins(backward_types, backward_task, add_sums)
def backward(
    layout, need, training, cotangent, x, weight, statistics, factors, sums, state, past, dx, totals
):
    given = (training, cotangent, x, weight, statistics, factors, sums, state, past, dx, totals)
    batch, down = factors.shape[0], sums.shape[1]
    for first in range(0, x.shape[0], batch):
        blocks = (min(first + batch, x.shape[0]) - first) * (state.size // batch)
        for step in range(1 if down == 1 else 3):
            tasks = blocks if step == 1 else blocks * down
            for number in prange(tasks):
                backward_task(first, step, number, layout, need, *given)
        add_sums(first, layout, need, *given)
