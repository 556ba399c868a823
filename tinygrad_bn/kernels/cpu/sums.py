"""Sums over one contiguous run of values, shared by the families *rows* and *split*.

Partial sums of one chunk are in the dtype of the values, which vectorizes fully; chunks are added in float64.
Every loop runs over a slice and from 0, because LLVM does not vectorize it otherwise.
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
def add_moments(values, count, mean, squares):
    """Merge a run into (count, mean, sum of squared deviations), reading it from memory once.

    In a chunk the deviations are taken from its own mean, rounded to the dtype, and what the rounding left
    is put right afterwards; chunks are merged by Chan, Golub and LeVeque (1979). Subtracting the first
    value makes the statistics of a constant exact.
    """
    for start in range(0, values.size, CHUNK):
        chunk = values[start : start + CHUNK]
        n = chunk.size
        zero = values.dtype.type(0)
        pivot = chunk[0] if is_finite(chunk[0]) else zero
        total = zero
        for j in range(n):
            total += chunk[j] - pivot
        centre = values.dtype.type(pivot + np.float64(total) / n)
        total = zero
        total_squares = zero
        for j in range(n):
            deviation = chunk[j] - centre
            total += deviation
            total_squares += deviation * deviation
        chunk_mean = np.float64(centre)
        chunk_squares = np.float64(total_squares)
        if is_finite(centre):
            shift = np.float64(total) / n
            chunk_mean += shift
            chunk_squares -= min(np.float64(total) * shift, chunk_squares)
        count, mean, squares = merge_moments(count, mean, squares, n, chunk_mean, chunk_squares)
    return count, mean, squares


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
        total = values.dtype.type(0)
        for j in range(chunk.size):
            total += chunk[j] * chunk[j]
        result += total
    return result


@body
def cotangent_sums(cotangent, values, centre):
    """The sums of the cotangent and of cotangent * (values - centre) over a run, in float64."""
    plain = 0.0
    moment = 0.0
    for start in range(0, values.size, CHUNK):
        g = cotangent[start : start + CHUNK]
        v = values[start : start + CHUNK]
        total = values.dtype.type(0)
        total_moment = values.dtype.type(0)
        for j in range(g.size):
            total += g[j]
            total_moment += g[j] * (v[j] - centre)
        plain += total
        moment += total_moment
    return plain, moment


@body
def add_up(partials, total):
    """Add the tasks' partial sums to a total in float64, in the order of the tasks."""
    for task in range(partials.shape[0]):
        part = partials[task]
        for j in range(part.size):
            total[j] += part[j]
