"""The backward pass of the family *rows*, whose formulas stand in ``rows``.

Many rows go in pairs, and each task has its own sums of dweight and dbias; few long ones go by blocks of
columns, and each task has its own sums of the rows.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from ..views import Rows, remembered
from .jit import DOUBLE, FLAG, INT, allocating, body, read, task, twins, write
from .stores import fence, write_out
from .sums import add_up, contract, expand, fits, is_finite, limits_of, one_row, reliable, times_rest

# A task of the backward pass sums dweight and dbias in the dtype of x, over no more rows than this, and over
# no fewer, since the sums of each task are one more row.
MOST_BACKWARD_ROWS, LEAST_BACKWARD_ROWS = 256, 8
BACKWARD_TASKS = 16
# Of the backward pass several rows go through each step together, so many values: they stay near.
BLOCK = 2048
# Few rows that are longer than so many columns are differentiated in blocks of these, so that no task has
# partial sums of dweight and dbias as long as a row.
COLUMNS = 2048
# More rows of one group are, where two of them with their cotangents do not stay in the second-level cache.
LONG_PAIR = 1 << 15


@body
def sum_rows(
    zero, n, m, G, a, first, cotangent, x, weights, mean, rstd, dweights, dbiases, none, totals, moments
):
    """The sums of g · weight and of g · weight · x̂ over each row; its parts of dweight and dbias are added.

    The rows are those of groups a, a + 1, … of samples n … m − 1, or where first is not None as many columns
    of them, from that one on. Two rows of a group are taken at a time, so that its dweight and dbias are
    loaded and stored once for both; where the second is missing, the first stands for it with no cotangent.
    """
    T = type(zero)
    groups = weights.shape[0]
    for k in range(groups):
        w, dweight, dbias = weights[k], dweights[k], dbiases[k]
        last = (m - 1) * G + a + k
        i = k
        for r0 in range(n * G + a + k, last + 1, 2 * G):
            r1 = min(r0 + G, last)
            if first is None:
                row0, row1, g0 = x[r0], x[r1], cotangent[r0]
                g1 = cotangent[r1] if r1 > r0 else none
            else:
                end = first + w.size
                row0, row1, g0 = x[r0, first:end], x[r1, first:end], cotangent[r0, first:end]
                g1 = cotangent[r1, first:end] if r1 > r0 else none
            centre0, centre1 = T(mean[r0]), T(mean[r1])
            scale0, scale1 = T(rstd[r0]), T(rstd[r1])
            shift0, shift1 = T((centre0 - mean[r0]) * rstd[r0]), T((centre1 - mean[r1]) * rstd[r1])
            total0, total1, moment0, moment1 = zero, zero, zero, zero
            for j in range(w.size):
                normalized0 = (row0[j] - centre0) * scale0 + shift0
                normalized1 = (row1[j] - centre1) * scale1 + shift1
                dweight[j] += g0[j] * normalized0 + g1[j] * normalized1
                dbias[j] += g0[j] + g1[j]
                total0 += g0[j] * w[j]
                total1 += g1[j] * w[j]
                moment0 += g0[j] * w[j] * normalized0
                moment1 += g1[j] * w[j] * normalized1
            totals[i], totals[i + groups] = total0, total1
            moments[i], moments[i + groups] = moment0, moment1
            i += 2 * groups


@body
def fits_row(rstd, total, moment, share, limits):
    """Whether a dtype of these limits is wide enough for what comes from the two sums of a row, of which each
    value has such a share.
    """
    high = limits[1]
    means = fits(total, limits) & fits(moment, limits) & fits(rstd * rstd * moment * share, limits)
    return means & reliable(rstd, limits) & (abs(rstd * total * share) < high)


@body
def mark_outside(x, rstd, totals, moments, outside):
    """Mark the rows for which the dtype of x is not wide enough, and count them."""
    bad, limits, share = 0, limits_of(x), 1.0 / x.shape[1]
    for r in range(rstd.size):
        ok = fits_row(rstd[r], totals[r], moments[r], share, limits)
        outside[r] = not ok
        bad += not ok
    return bad


@body
def to_factors(zero, length, centred, mean, rstd, totals, moments):
    """In the place of the two sums of a row: what dx has besides g · rstd, a constant and a factor of x minus
    the mean in the type of zero. Without the first sum where not centred.
    """
    T = type(zero)
    for r in range(totals.size):
        slope = -rstd[r] * rstd[r] * moments[r] / length
        # rstd as it is multiplied by g, that is rounded, so that a constant g cancels
        shift = -T(rstd[r]) * totals[r] / length if centred else 0.0
        totals[r] = shift + times_rest(T(mean[r]) - mean[r], slope)
        moments[r] = slope


@body
def differentiate(zero, only_marked, cotangent, x, weight, mean, rstd, shift, slope, marks, dx):
    """dx of rows, of which the first belongs to the first group, or of marked ones, from to_factors."""
    T = type(zero)
    group = 0
    for r in range(x.shape[0]):
        g, row, w, out = cotangent[r], x[r], weight[group], dx[r]
        centre, scale, along, constant = T(mean[r]), T(rstd[r]), T(slope[r]), T(shift[r])
        for j in range(w.size if marks[r] or not only_marked else 0):
            out[j] = g[j] * w[j] * scale + ((row[j] - centre) * along + constant)
        group = group + 1 if group + 1 < weight.shape[0] else 0


@body
def differentiate_rows(
    zero,
    again,
    n,
    m,
    G,
    a,
    cotangent,
    x,
    weights,
    mean,
    rstd,
    centred,
    past,
    dx,
    dweights,
    dbiases,
    none,
    sums,
    room,
    bad,
):
    """Groups a, a + 1, … of samples n … m − 1. Again, it writes dx of those rows only that are marked in bad.

    For how many rows the dtype of x was not wide enough is returned. sums and room are for a few samples.
    """
    groups, length = weights.shape
    for group in range(groups):
        dweights[group, :] = 0
        dbiases[group, :] = 0
    step = sums.shape[1] // groups
    run = step if groups == G else 1  # so many samples are neighbours
    aside = past and not again
    number = 0
    for c in range(n, m, step):
        e = min(c + step, m)
        total, moment = sums[0], sums[1]
        sum_rows(
            *(zero, c, e, G, a, None, cotangent, x, weights, mean, rstd),
            *(dweights, dbiases, none, total, moment),
        )
        for i in range(c, e, run):
            size = min(run, e - i) * groups
            r, k, p = i * G + a, (i - n) * groups, (i - c) * groups
            end = r + size
            means, rstds, marks = mean[r:end], rstd[r:end], bad[k : k + size]
            totals, moments = total[p : p + size], moment[p : p + size]
            if not again:
                number += mark_outside(x, rstds, totals, moments, marks)
            if dx.size != 0:
                to_factors(zero, length, centred, means, rstds, totals, moments)
                g, rows, place = cotangent[r:end], x[r:end], dx[r:end]
                out = room[:size] if aside else place
                differentiate(zero, again, g, rows, weights, means, rstds, totals, moments, marks, out)
                write_out(aside, out, place)
    return number


@allocating
def differentiate_samples(
    n, m, G, a, b, repeat, cotangent, x, weight, mean, rstd, centred, past, dx, dweight, dbias
):
    """Groups a … b − 1 of samples n … m − 1, in the dtype of x, and in float64 where that is too narrow."""
    groups, length = b - a, x.shape[1]
    first, last = a * length // repeat, b * length // repeat
    weights, none = np.empty((groups, length), x.dtype), np.zeros(length, x.dtype)
    expand(weight[first:last], repeat, weights.reshape(weights.size))
    dweights, dbiases = np.empty((groups, length), x.dtype), np.empty((groups, length), x.dtype)
    together = max(1, BLOCK // (2 * groups * length)) * 2 * groups
    sums, room = np.empty((2, together)), np.empty((together if past else 0, length), x.dtype)
    outside = np.empty((m - n) * groups, np.bool_)
    given = (
        *(n, m, G, a, cotangent, x, weights, mean, rstd, centred),
        *(past, dx, dweights, dbiases, none, sums, room, outside),
    )
    if differentiate_rows(x.dtype.type(0), False, *given):
        differentiate_rows(0.0, True, *given)
    contract(dweights.reshape(dweights.size), repeat, dweight[first:last])
    contract(dbiases.reshape(dbiases.size), repeat, dbias[first:last])
    if past:
        fence()


@body
def sum_again(repeat, cotangent, x, mean, rstd, dweight, dbias):
    """dweight and dbias where the sums of a task overflowed: in float64 from the first row to the last."""
    dweight[:] = 0
    dbias[:] = 0
    for r in range(x.shape[0]):
        first = r * x.shape[1] // repeat % dweight.size
        for c in range(x.shape[1] // repeat):
            for j in range(c * repeat, c * repeat + repeat):
                dweight[first + c] += cotangent[r, j] * ((x[r, j] - mean[r]) * rstd[r])
                dbias[first + c] += cotangent[r, j]


@allocating
def add_partials(repeat, cotangent, x, mean, rstd, partials, dweight, dbias):
    totals = np.zeros((2, dweight.size))
    add_up(partials[0], totals[0])
    add_up(partials[1], totals[1])
    if not (is_finite(totals[0].sum()) and is_finite(totals[1].sum())):
        sum_again(repeat, cotangent, x, mean, rstd, totals[0], totals[1])
    for j in range(dweight.size):
        dweight[j], dbias[j] = totals[0, j], totals[1, j]


def backward_types(T):
    return (
        *(INT, INT, INT, read(T, 2), read(T, 2), read(T, 1), read(DOUBLE, 2), FLAG, FLAG),
        *(write(T, 2), write(T, 3), write(T, 1), write(T, 1)),
    )


@body
def shares_of(step, together, repeat, x, weight):
    """How many samples and groups there are, and how many tasks for each."""
    groups = weight.size * repeat // x.shape[1]
    samples = x.shape[0] // groups
    return samples, groups, (samples + step - 1) // step, (groups + together - 1) // together


@task(backward_types)
def differentiate_task(
    number,
    step,
    together,
    repeat,
    cotangent,
    x,
    weight,
    statistics,
    centred,
    past,
    dx,
    partials,
    dweight,
    dbias,
):
    samples, G, _down, across = shares_of(step, together, repeat, x, weight)
    t, a = number // across, number % across * together
    n, m, b = t * step, min(t * step + step, samples), min(a + together, G)
    differentiate_samples(
        *(n, m, G, a, b, repeat, cotangent, x, weight, statistics[0], statistics[2], centred),
        *(past, dx, partials[0, t], partials[1, t]),
    )


@task(backward_types, numbers=0)
def add_tasks(
    step, together, repeat, cotangent, x, weight, statistics, centred, past, dx, partials, dweight, dbias
):
    """dweight and dbias from those of the tasks."""
    add_partials(repeat, cotangent, x, statistics[0], statistics[2], partials, dweight, dbias)


@twins(backward_types, differentiate_task, add_tasks)
def backward(
    step, together, repeat, cotangent, x, weight, statistics, centred, past, dx, partials, dweight, dbias
):
    given = (
        *(step, together, repeat, cotangent, x, weight, statistics, centred, past),
        *(dx, partials, dweight, dbias),
    )
    _samples, _groups, down, across = shares_of(step, together, repeat, x, weight)
    for number in prange(down * across):
        differentiate_task(number, *given)
    add_tasks(*given)


@allocating
def sum_block(zero, a, b, repeat, cotangent, x, weight, mean, rstd, dweight, dbias, totals, moments):
    """Columns a … b − 1 of every row: their parts of the sums of each row, and dweight and dbias.

    Whether the dtype of x was wide enough for it is returned.
    """
    limits = limits_of(x)
    first, last = a // repeat, b // repeat
    weights, dweights, dbiases = (
        np.empty((1, b - a), x.dtype),
        np.full((1, b - a), zero),
        np.full((1, b - a), zero),
    )
    expand(weight[first:last], repeat, weights[0])
    none = np.zeros(b - a, x.dtype)
    sum_rows(
        *(zero, 0, x.shape[0], 1, 0, a, cotangent, x, weights, mean, rstd),
        *(dweights, dbiases, none, totals, moments),
    )
    contract(dweights[0], repeat, dweight[first:last])
    contract(dbiases[0], repeat, dbias[first:last])
    outside, share = 0, 1.0 / x.shape[1]
    for r in range(x.shape[0]):
        outside += not fits_row(rstd[r], totals[r], moments[r], share, limits)
    return outside == 0 and is_finite(dweight[first:last].sum()) and is_finite(dbias[first:last].sum())


@allocating
def differentiate_block(a, b, repeat, cotangent, x, weight, mean, rstd, centred, totals, moments, dx):
    """dx of columns a … b − 1 of each row, in the dtype of x or, if too narrow for it, in float64."""
    limits, length = limits_of(x), x.shape[1]
    weights, none = np.empty((1, b - a), x.dtype), np.zeros(1, np.bool_)
    expand(weight[a // repeat : b // repeat], repeat, weights[0])
    shift, slope = np.empty(1), np.empty(1)
    for r in range(x.shape[0]):
        e = r + 1
        g, row, out = one_row(cotangent[r, a:b]), one_row(x[r, a:b]), one_row(dx[r, a:b])
        means, rstds = mean[r:e], rstd[r:e]
        shift[0], slope[0] = totals[r], moments[r]
        if fits_row(rstd[r], totals[r], moments[r], 1.0 / length, limits):
            zero = x.dtype.type(0)
            to_factors(zero, length, centred, means, rstds, shift, slope)
            differentiate(zero, False, g, row, weights, means, rstds, shift, slope, none, out)
        else:
            to_factors(0.0, length, centred, means, rstds, shift, slope)
            differentiate(0.0, False, g, row, weights, means, rstds, shift, slope, none, out)


def long_types(T):
    return (
        *(INT, INT, read(T, 2), read(T, 2), read(T, 1), read(DOUBLE, 2), FLAG),
        *(write(T, 2), write(DOUBLE, 3), write(T, 1), write(T, 1)),
    )


@task(long_types)
def sum_block_task(
    number, columns, repeat, cotangent, x, weight, statistics, centred, dx, partials, dweight, dbias
):
    a = number * columns
    b = min(a + columns, x.shape[1])
    given = (
        *(a, b, repeat, cotangent, x, weight, statistics[0], statistics[2]),
        *(dweight, dbias, partials[0, number], partials[1, number]),
    )
    if not sum_block(x.dtype.type(0), *given):
        sum_block(0.0, *given)


@task(long_types, numbers=0)
def add_blocks(columns, repeat, cotangent, x, weight, statistics, centred, dx, partials, dweight, dbias):
    """The sums of each row, in the place of those of its first block."""
    totals, moments = partials[0], partials[1]
    for block in range(1, totals.shape[0]):
        for r in range(totals.shape[1]):
            totals[0, r] += totals[block, r]
            moments[0, r] += moments[block, r]


@task(long_types)
def differentiate_block_task(
    number, columns, repeat, cotangent, x, weight, statistics, centred, dx, partials, dweight, dbias
):
    a = number * columns
    b = min(a + columns, x.shape[1])
    differentiate_block(
        *(a, b, repeat, cotangent, x, weight, statistics[0], statistics[2]),
        *(centred, partials[0, 0], partials[1, 0], dx),
    )


@twins(long_types, sum_block_task, add_blocks, differentiate_block_task)
def backward_long(columns, repeat, cotangent, x, weight, statistics, centred, dx, partials, dweight, dbias):
    given = (columns, repeat, cotangent, x, weight, statistics, centred, dx, partials, dweight, dbias)
    for number in prange(partials.shape[1]):
        sum_block_task(number, *given)
    if dx.size != 0:
        add_blocks(*given)
        for number in prange(partials.shape[1]):
            differentiate_block_task(number, *given)


@remembered
def pieces_of(plan: Rows) -> tuple[tuple[int, ...], tuple[int, int, int]]:
    """How the work is cut up, and the shape of what the tasks add up.

    By blocks of so many columns; or, of so many samples and so many groups of each, by pairs of rows.
    """
    most = COLUMNS if plan.rows < 4 * BACKWARD_TASKS else LONG_PAIR
    if plan.length > most and plan.rows <= MOST_BACKWARD_ROWS and plan.groups == 1:
        columns = COLUMNS // plan.repeat * plan.repeat
        return (columns,), (2, -(-plan.length // columns), plan.rows + plan.rows % 2)
    # As many groups of a sample as stay in the first-level cache.
    together = min(max(1, BLOCK // (2 * plan.length)), plan.groups)
    samples = plan.rows // plan.groups
    tasks = samples * -(-plan.groups // together)
    step = min(max(tasks // BACKWARD_TASKS, LEAST_BACKWARD_ROWS), MOST_BACKWARD_ROWS)
    step += step % 2
    return (step, together), (2, -(-samples // step), plan.channels)
