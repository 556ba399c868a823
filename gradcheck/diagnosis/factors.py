"""The coefficients of fitted terms, read back as words."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gradcheck.diagnosis.terms import Norm, listed

__all__ = ["DEVIATION", "Factors"]

SMALL_CHANGE = 1e-2  # a factor as near to 1 as this is written as 1 + its distance
DEVIATION = 1e-12  # a coefficient this far from 1 may be rounding of the arithmetic here
UNNAMED = 2  # complexity of a factor that nothing explains; of one with a name it is 1


@dataclass(frozen=True, slots=True)
class Factors:
    """What is known about a sum that coefficients may come from.

    count: N, of how many values a mean is, or how many a parameter's gradient sums. lengths: of the axes.
    remedies: of each term, what to do where it is missing.
    """

    count: int = 1
    correction: int = 0
    lengths: tuple[int, ...] = ()
    remedies: Mapping[str, str] | None = None
    summed: bool = False  # the term is a sum by nature, and a mean is the mistake

    @classmethod
    def of(cls, norm: Norm, role: str, weighted: bool) -> Factors:
        """Those of the gradient of one input of a normalization."""
        if role != "x":
            count = math.prod(norm.shape[axis] for axis in norm.shared)
            return cls(count, 0, norm.shape, {}, summed=True)
        g, where = "the cotangent times weight" if weighted else "the cotangent", norm.where()
        remedies = {
            "direct": f"add rstd times {g}",
            "mean path": f"subtract the mean of {g} {where}",
            "variance path": f"subtract x̂ times the mean of ({g} times x̂) {where}",
            "rms path": f"subtract x̂ times the mean of ({g} times x̂) {where}",
        }
        return cls(norm.count, norm.correction, norm.split_shape, remedies)

    @classmethod
    def of_mask(cls) -> Factors:
        """Those of the gradient of dropout."""
        return cls(remedies={})

    def read(
        self,
        names: Sequence[str],
        coefficients: np.ndarray,
        errors: np.ndarray,
        expected: Mapping[str, float],
    ) -> tuple[int, str]:
        """How complex a set of coefficients is, 0 for the expected ones, and what is wrong in words."""
        wanted = np.array([expected[name] for name in names])
        errors = np.fmax(errors, DEVIATION)
        if np.all(np.abs(coefficients - wanted) <= errors):
            return 0, ""
        if np.all(np.abs(coefficients) <= errors):
            return 1, "the gradient is zero: every term is missing"
        own = wanted != 0
        factor = float(coefficients[own][0])
        relative = (
            coefficients / factor if abs(factor) > errors[own][0] else np.full_like(coefficients, np.nan)
        )
        readings = [self._each(names, coefficients, errors, wanted)]
        if np.isfinite(relative).all() and abs(factor - 1) > errors[own][0]:
            complexity, whole = self._factor(factor, float(errors[own][0]), mean=False)
            subject = "the gradient is" if self.summed or len(names) == 1 else "the whole gradient is"
            rest, words = self._each(names, relative, errors / abs(factor) * 2, wanted)
            parts = [f"{subject} {whole}", words] if words else [f"{subject} {whole}"]
            readings.insert(0, (complexity + rest, "; ".join(parts)))
        return min(readings, key=lambda reading: reading[0])

    def _each(
        self, names: Sequence[str], coefficients: np.ndarray, errors: np.ndarray, wanted: np.ndarray
    ) -> tuple[int, str]:
        complexity, parts = 0, []
        off = np.abs(coefficients - wanted) > errors
        own = wanted != 0
        missing = [
            name for name, c, e, w in zip(names, coefficients, errors, own, strict=True) if w and abs(c) <= e
        ]
        if missing:
            complexity += 1
            parts.append(self._missing(missing))
        foreign = [name for name, is_off, w in zip(names, off, own, strict=True) if is_off and not w]
        if foreign:
            complexity += 1
            parts.append(self._foreign(foreign, coefficients[off & ~own]))
        factors = {
            name: (float(c), float(e))
            for name, c, e, is_off in zip(names, coefficients, errors, off, strict=True)
            if is_off and name not in missing and name not in foreign
        }
        for name, (c, e) in list(factors.items()):
            if name not in factors:
                continue
            alike = [other for other, (d, f) in factors.items() if abs(c - d) <= e + f]
            for other in alike:
                del factors[other]
            its, words = self._factor(c, e, mean=True, corrected="path" in name and name != "mean path")
            complexity += its
            verb = "is" if len(alike) == 1 else "are"
            parts.append(f"{_both(alike)} {verb} {words}")
        return complexity, "; ".join(parts)

    def _missing(self, names: list[str]) -> str:
        remedies = [self.remedies[name] for name in names if self.remedies and name in self.remedies]
        words = f"{_both(names)} {'is' if len(names) == 1 else 'are'} missing"
        if len(names) > 1 and "direct" not in names:
            words += ", as in the formula of inference"
        return f"{words}: {', and '.join(remedies)}" if remedies else words

    def _foreign(self, names: list[str], coefficients: np.ndarray) -> str:
        words = f"{_both(names)} {'does' if len(names) == 1 else 'do'} not belong here"
        if len(names) > 1:
            words += ": this is the formula of training, and running statistics are constants"
        elif "mean path" in names:
            words += ": no mean of the input is subtracted in the forward pass"
        if np.any(np.abs(coefficients - 1) > 1e-9):
            words += f" (factor {', '.join(f'{c:.6g}' for c in coefficients)})"
        return words

    def _factor(self, k: float, error: float, *, mean: bool, corrected: bool = False) -> tuple[int, str]:
        """How complex a factor is, and the words that follow "the path is"."""
        close = max(error, DEVIATION) * max(abs(k), 1)
        found = [words for value, words in self._named(mean, corrected) if abs(k - value) <= close]
        if found:
            return 1, found[0] + (f" (or {found[1]})" if len(found) > 1 else "")
        opposite = [words for value, words in self._named(mean, corrected) if abs(k + value) <= close]
        if opposite:
            return 2, f"{opposite[0]}, and of the wrong sign"
        if abs(k - 1) < SMALL_CHANGE:
            return UNNAMED, f"multiplied by 1 {'+' if k > 1 else '−'} {abs(k - 1):.4g}"
        return UNNAMED, f"multiplied by {k:.6g}"

    def _named(self, mean: bool, corrected: bool) -> Iterator[tuple[float, str]]:
        """The factors that a mistake is known for, the simple ones first: of a mean, or of a gradient."""
        yield -1.0, "of the wrong sign"
        yield 2.0, "counted twice"
        yield 0.5, "halved"
        n = self.count
        if n == 1:
            return
        if mean and not self.summed:
            yield from self._named_of_mean(corrected and self.correction > 0)
            return
        yield 1 / n, f"a mean, not a sum: do not divide by {n}" if self.summed else f"divided by N = {n}"
        yield (
            float(n),
            f"multiplied by {n}, the number of values that are {'summed' if self.summed else 'averaged'}",
        )
        yield n / (n - 1), f"too large by the factor N/(N − 1) = {n}/{n - 1}"
        yield (n - 1) / n, f"too small by the factor (N − 1)/N = {n - 1}/{n}"
        for axes, size in self._products():
            if size == n:
                continue
            yield 1 / size, f"divided by {size}, the length of {listed(axes)}"
            yield float(size), f"multiplied by {size}, the length of {listed(axes)}"

    def _named_of_mean(self, corrected: bool) -> Iterator[tuple[float, str]]:
        n = self.count
        right, divisor = (f"N − 1 = {n - 1}", n - 1) if corrected else (f"N = {n}", n)
        yield float(divisor), f"a sum, not a mean: divide by {right}"
        if corrected:
            yield (
                (n - 1) / n,
                f"divided by N = {n}, but the forward pass divides the variance by N − 1 = {n - 1}",
            )
        else:
            yield n / (n - 1), f"divided by N − 1 = {n - 1} instead of N = {n}"
            yield (n - 1) / n, f"too small by the factor (N − 1)/N = {n - 1}/{n}"
        yield 1 / divisor, f"divided by {right} twice"
        for axes, size in self._products():
            if size not in (n, divisor):
                yield divisor / size, f"divided by {size}, the length of {listed(axes)}, instead of {right}"

    def _products(self) -> list[tuple[tuple[int, ...], int]]:
        """Lengths of axes, and of several together."""
        axes = [axis for axis, length in enumerate(self.lengths) if length > 1]
        chosen = itertools.chain.from_iterable(
            itertools.combinations(axes, k) for k in range(1, len(axes) + 1)
        )
        return [(axes, math.prod(self.lengths[axis] for axis in axes)) for axes in chosen]


def _both(names: Sequence[str]) -> str:
    if list(names) == ["direct"]:
        return "the direct term"
    listed_names = ["the direct term" if name == "direct" else f"the {name}" for name in names]
    return " and ".join(listed_names)
