"""Sums over one run of values, and the range in which arithmetic in the values' own dtype is reliable.

Partial sums of one chunk are in the dtype of the values, which vectorizes fully; chunks are added in float64.
Every loop runs over a slice and from 0: written so, the loops are vectorized, as the tests verify.

A body that computes in the dtype of x takes a ``zero`` and computes in its type. Where it finds that its sums
or factors may have overflowed or underflowed, its work is done again with a zero in float64. Hence finite
float32 values up to 1e38, subnormal ones included, and cotangents up to 1e30 give what the formulas give in
float64, wherever float32 can represent it; but a row whose products of cotangent and weight all underflow is
taken for one without a cotangent.
"""

from __future__ import annotations

import numpy as np

from .jit import allocating, as_written, body

# A chunk stays in the first-level cache for a second pass, and is short enough for sums in float32, which are
# made in dozens of lanes.
CHUNK = 2048
# So many values, spread over a run, tell about where its mean lies.
SAMPLES = 16
# Shorter rows make do with four: their sums have fewer roundings.
LONG_ENOUGH = 256
# Beside an eps that is no less, a variance below 1e-45 makes no difference.
LEAST_EPS = 1e-12


@body
def is_finite(value):
    """As ``math.isfinite``, which numba makes of value - value; reassociation may not let that stand."""
    return abs(value) < np.inf


@body
def limits_of(values):
    """How small and how large a sum or a factor may be where arithmetic in the values' dtype is reliable."""
    info = np.finfo(values.dtype)
    return info.tiny / info.eps, info.max * info.eps


@body
def reliable(value, limits):
    """Whether a sum or a factor lies well inside the range of a dtype.

    NaN and infinity do not, and neither does 0, which a sum of products may be by underflow.
    """
    low, high = limits
    return low < abs(value) < high


@body
def fits(factor, limits):
    """Whether a factor that was found in float64 can be used in a dtype of these limits."""
    return factor == 0 or reliable(factor, limits)


@body
def centre_of(mean, variance):
    """What to take off the values before they are multiplied by rstd; the rest of the mean goes after it.

    A mean that is larger than the deviation would cost digits later. A smaller one costs none, and not to
    subtract it saves a rounding. The deviation is that of the values, without eps, or what is left of
    constant ones would be the rounding of their mean.
    """
    return mean if mean * mean > variance else 0.0


@body
def times_rest(rest, factor):
    """Their product, where rest is what the rounding of a mean left of it.

    Nothing is added to what an infinite factor gives: its product with 0 would make NaN of all values.
    """
    return rest * factor if is_finite(factor) else 0.0


@body
def two_parts(zero, factor):
    """A factor in float64 as the sum of two in the type of zero: so that to round it costs no accuracy.

    Both have its sign: of infinity, the sum of the products is no NaN. It is finite, and not subnormal.
    """
    T = type(zero)
    large = T(factor * (1 - 2 * np.finfo(T).eps))
    return large, T(factor - large)


@as_written
def multiply_add(value, large, small, addend):
    """value · (large + small) + addend, for a factor in two parts."""
    return value * large + (value * small + addend)


@body
def constant(one, mean, squares, eps):
    """Whether values are all equal to a certain one, or a pivot near them, as far as their statistics tell.

    Squares whose sum is 0 may have underflowed; but then the mean is hardly equal to that value, and a
    variance of 0 makes no difference beside an eps of ordinary size.
    """
    return squares == 0 and mean == one and eps >= LEAST_EPS


@body
def samples(n, few):
    """How many of n values, and how far apart, are a sample of a few that is spread over them.

    The distance is odd, so that they do not all lie at an image's edge.
    """
    return min(n, few), (n // few - 1) | 1 if n >= few else 1


@body
def sample_mean(values):
    """The mean of a few values spread over a run, in float64; 0 where one of them is not finite."""
    few, step = samples(values.size, SAMPLES)
    total = 0.0
    for k in range(few):
        total += values[k * step]
    return total / few if is_finite(total) else 0.0


@body
def settled(n, total, squares):
    """Whether a pivot was near enough: no further from the mean of n values than twice their deviation.

    total and squares are the sums of x − pivot and of its square. squares − total² / n is then no less than a
    fifth of squares. NaN and infinity are settled: no other pivot would help.
    """
    return not 1.25 * total * total > squares * n


@body
def add_moments(zero, values, count, mean, squares):
    """Merge a run into (count, mean, sum of squared deviations), reading it from memory once.

    In a chunk the deviations are taken from a pivot near the mean: that of the chunks before, or of a few
    values. Where it proves not to be near, they are taken again from the mean, rounded to the dtype. Chunks
    are merged by Chan, Golub and LeVeque (1979).
    """
    T = type(zero)
    for start in range(0, values.size, CHUNK):
        chunk = values[start : start + CHUNK]
        n = chunk.size
        pivot = T(mean) if count > 0 and is_finite(mean) else T(sample_mean(chunk))
        for _attempt in range(2):
            total = zero
            total_squares = zero
            for j in range(n):
                deviation = chunk[j] - pivot
                total += deviation
                total_squares += deviation * deviation
            shift = np.float64(total) / n
            chunk_mean = np.float64(pivot) + shift
            if settled(n, np.float64(total), np.float64(total_squares)):
                break
            pivot = T(chunk_mean)
        chunk_squares = np.float64(total_squares)
        chunk_squares -= min(np.float64(total) * shift, chunk_squares)
        if count == 0:
            count, mean, squares = n, chunk_mean, chunk_squares
        else:
            count, mean, squares = merge_moments(count, mean, squares, n, chunk_mean, chunk_squares)
    return count, mean, squares


@body
def row_moments(zero, x, centred, mean, variance, shift):
    """The mean of each row and the mean squared deviation from it, or from 0 where not centred.

    Rows are no longer than a chunk. As in add_moments, the deviations are taken from a pivot, here the mean
    of values at four places. What is done once for a row is done for many at a time: on short rows it would
    cost more than the sums. shift is scratch, of the size of mean.
    """
    T = type(zero)
    length = x.shape[1]
    width = 4 if length >= LONG_ENOUGH else 1
    apart = (length - width) // 3
    share = T(0.25 / width)
    for attempt in range(2):
        for r in range(x.shape[0]):
            row = x[r]
            pivot = zero
            if attempt == 0:
                if centred:
                    first, second, third, fourth = zero, zero, zero, zero
                    for k in range(width):
                        first += T(row[k])
                        second += T(row[k + apart])
                        third += T(row[k + 2 * apart])
                        fourth += T(row[k + 3 * apart])
                    sample = (first + second) + (third + fourth)
                    pivot = sample * share if is_finite(sample) else zero
            elif centred and not settled(length, shift[r], variance[r]):
                pivot = T(mean[r] + shift[r] / length)
            else:
                continue
            total = zero
            squares = zero
            for j in range(length):
                deviation = row[j] - pivot
                total += deviation
                squares += deviation * deviation
            mean[r] = pivot
            shift[r] = total
            variance[r] = squares
    for r in range(mean.size):
        if centred:
            shift[r] /= length
            mean[r] += shift[r]
        else:
            shift[r] = 0
        square = variance[r] / length
        variance[r] = square - min(shift[r] * shift[r], square)


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
def sum_squares(zero, values):
    """The sum of the squares of a run, in float64."""
    result = 0.0
    for start in range(0, values.size, CHUNK):
        chunk = values[start : start + CHUNK]
        total = zero
        for j in range(chunk.size):
            value = type(zero)(chunk[j])
            total += value * value
        result += total
    return result


@body
def expand(values, times, result):
    """Each value so many times in a row."""
    if times == 1:
        for j in range(values.size):
            result[j] = values[j]
    else:
        for k in range(values.size):
            value, part = values[k], result[k * times : k * times + times]
            for j in range(part.size):
                part[j] = value


@body
def contract(values, times, result):
    """The sums of so many neighbours each."""
    if times == 1:
        for j in range(result.size):
            result[j] = values[j]
    else:
        for k in range(result.size):
            total, part = 0.0, values[k * times : k * times + times]
            for j in range(part.size):
                total += part[j]
            result[k] = total


@allocating
def one_row(values):
    """A run of values as an array of one row."""
    return np.expand_dims(values, 0)


@body
def add_up(partials, total):
    """Add the tasks' partial sums to a total in float64, in the order of the tasks."""
    for task in range(partials.shape[0]):
        part = partials[task]
        for j in range(part.size):
            total[j] += part[j]
