"""Sums over one run of values, and the range in which the arithmetic of the values' own dtype is trusted.

Partial sums of one chunk are in the dtype of the values, which vectorizes fully; chunks are added in float64.
A chunk whose float32 sums may have overflowed or underflowed is summed again in float64: a body computes in
the type of its ``centre``, so that one source serves for both. The same holds where the families normalize
and differentiate. Finite float32 values up to 1e38, subnormal ones included, thus give the statistics and
outputs of the formulas in float64, wherever these can be represented, and so do cotangents up to 1e30.
"""

from __future__ import annotations

import numpy as np

from .jit import body

# A chunk stays in the first-level cache for its second pass, and is short enough for a sum in float32.
CHUNK = 1024


@body
def is_finite(value):
    """As ``math.isfinite``, which numba makes of value - value; reassociation may not let that stand."""
    return abs(value) < np.inf


@body
def reliable(value, values):
    """Whether a sum or a factor lies so far inside the range of the values' dtype that nothing was lost.

    NaN and infinity do not, and neither does 0, which a sum of squares may be by underflow.
    """
    info = np.finfo(values.dtype)
    return info.tiny / info.eps < abs(value) < info.max * info.eps


@body
def fits(factor, values):
    """Whether a factor that was found in float64 can be applied in the values' dtype."""
    return factor == 0 or reliable(factor, values)


@body
def add_moments(values, count, mean, squares):
    """Merge a run into (count, mean, sum of squared deviations), reading it from memory once.

    The moments of chunks are merged by Chan, Golub and LeVeque (1979).
    """
    for start in range(0, values.size, CHUNK):
        chunk = values[start : start + CHUNK]
        chunk_mean, chunk_squares = chunk_moments(chunk, values.dtype.type(0))
        if not reliable(chunk_squares, values):
            chunk_mean, chunk_squares = chunk_moments(chunk, 0.0)
        count, mean, squares = merge_moments(count, mean, squares, chunk.size, chunk_mean, chunk_squares)
    return count, mean, squares


@body
def chunk_moments(chunk, zero):
    """The mean and sum of squared deviations of a chunk, summed in the type of ``zero``.

    The deviations are taken from the mean rounded to that type, and what the rounding left is put right
    afterwards. Subtracting the first value makes the statistics of a constant exact.
    """
    T = type(zero)
    n = chunk.size
    pivot = T(chunk[0]) if is_finite(chunk[0]) else zero
    total = zero
    for j in range(n):
        total += chunk[j] - pivot
    centre = T(pivot + np.float64(total) / n)
    total = zero
    total_squares = zero
    for j in range(n):
        deviation = chunk[j] - centre
        total += deviation
        total_squares += deviation * deviation
    mean = np.float64(centre)
    squares = np.float64(total_squares)
    if is_finite(centre):
        shift = np.float64(total) / n
        mean += shift
        squares -= min(np.float64(total) * shift, squares)
    return mean, squares


@body
def merge_moments(count, mean, squares, n, n_mean, n_squares):
    """Chan's merge of two sets of values, each given as number, mean and sum of squared deviations."""
    together = count + n
    fraction = n / together
    delta = n_mean - mean
    squares += n_squares + delta * delta * (count * fraction)
    if is_finite(delta):
        mean += delta * fraction
    else:
        mean += n_mean  # an infinite mean stays infinite, where the difference would make it NaN
    return together, mean, squares


@body
def sum_squares(values):
    """The sum of the squares of a run, in float64."""
    result = 0.0
    for start in range(0, values.size, CHUNK):
        chunk = values[start : start + CHUNK]
        total = chunk_squares(chunk, values.dtype.type(1))
        if not reliable(total, values):
            total = chunk_squares(chunk, 1.0)
        result += total
    return result


@body
def chunk_squares(chunk, one):
    """The sum of the squares of a chunk, summed in the type of ``one``."""
    total = one - one
    for j in range(chunk.size):
        value = chunk[j] * one
        total += value * value
    return total


@body
def cotangent_sums(cotangent, values, centre):
    """The sums of the cotangent and of cotangent * (values - centre) over a run, in float64."""
    plain = 0.0
    moment = 0.0
    for start in range(0, values.size, CHUNK):
        g = cotangent[start : start + CHUNK]
        v = values[start : start + CHUNK]
        total, total_moment = chunk_sums(g, v, centre)
        if not (is_finite(total) and reliable(total_moment, values)):
            total, total_moment = chunk_sums(g, v, np.float64(centre))
        plain += total
        moment += total_moment
    return plain, moment


@body
def chunk_sums(cotangent, values, centre):
    """The sums of the cotangent and of cotangent * (values - centre), in the type of ``centre``."""
    total = type(centre)(0)
    moment = type(centre)(0)
    for j in range(cotangent.size):
        total += cotangent[j]
        moment += cotangent[j] * (values[j] - centre)
    return total, moment


@body
def add_up(partials, total):
    """Add the tasks' partial sums to a total in float64, in the order of the tasks."""
    for task in range(partials.shape[0]):
        part = partials[task]
        for j in range(part.size):
            total[j] += part[j]
