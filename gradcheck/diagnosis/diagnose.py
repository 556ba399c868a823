"""Which term of a gradient is wrong: the terms are fitted to it, and the fit is read as a sentence.

The right formula comes first, with free coefficients; then the known mistakes. What explains the gradient to
rounding is accepted, the simplest one; if nothing does, that is what the diagnosis says.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from gradcheck.budget import SAFETY, jiggled, rounding_floor
from gradcheck.diagnosis import mistakes
from gradcheck.diagnosis.factors import DEVIATION, Factors
from gradcheck.diagnosis.mistakes import Hypothesis
from gradcheck.diagnosis.terms import Family, Inputs, Mask, Norm
from gradcheck.judge import FLOAT32, like_float32

__all__ = ["Diagnosis", "diagnose"]

DETERMINED = 1e-2  # a coefficient known no better than this says nothing
NEARLY = 1e-3  # a gradient that is this close to the right formula has all terms
EPS_TRIED = (0.0, 1e-12, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
EPS_STEPS = 40
SINGULAR = 1e-14  # below this part of the largest singular value two terms are one
FITTED = 2  # complexity of an ε that nobody would choose
NOTHING_WRONG, AMBIGUOUS = 3, 4  # complexity of saying so: what explains more simply comes first
WORK = 1 << 26  # elements of the terms of all hypotheses that are tried
SIMPLE = 1  # a mistake of this complexity needs no simpler explanation


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The coefficients of the terms, the part of the gradient that they do not explain, and the sentence.

    wrong: whether the sentence names a mistake; False where the gradient is that of the right formula.
    """

    terms: tuple[tuple[str, float], ...]
    residual: float
    sentence: str
    wrong: bool = True


@dataclass(frozen=True, slots=True)
class _Fit:
    hypothesis: Hypothesis
    coefficients: np.ndarray
    errors: np.ndarray  # how far rounding may have moved each coefficient
    residual: float  # relative to the gradient
    explains: bool

    def diagnosis(self, sentence: str, wrong: bool = True) -> Diagnosis:
        snapped = [
            next((nice for nice in (0.0, 1.0, -1.0) if abs(c - nice) <= max(e, 1e-12)), float(c))
            for c, e in zip(self.coefficients, self.errors, strict=True)
        ]
        terms = tuple(zip(self.hypothesis.terms, snapped, strict=True))
        return Diagnosis(terms, self.residual, sentence, wrong)


def diagnose(
    family: Family,
    position: int,
    inputs: Inputs,
    output: np.ndarray,
    cotangent: np.ndarray,
    gradient: np.ndarray,
    wrong: np.ndarray | None = None,
) -> Diagnosis | None:
    """Explain a wrong gradient by the terms of its family; None where that says nothing about the input.

    Args:
        family: a record of gradcheck.diagnosis.terms that describes the forward pass.
        position: of the input, among `inputs`, whose gradient it is.
        inputs, output: of the forward pass; where x is zero, a mask keeps what the gradient says.
        cotangent, gradient: what the backward pass was given, and what it returned for that input.
        wrong: which elements of the gradient are known to be wrong, if all are known.
    """
    role = family.role(position)
    if role is None or not np.isfinite(gradient).all():
        return None
    target = np.asarray(gradient, np.float64)
    cotangent = np.asarray(cotangent, np.float64)
    with np.errstate(all="ignore"):  # a mistake tried in vain may divide by zero
        if isinstance(family, Mask):
            unit = rounding_floor(gradient.dtype, gradient.size)
            return _of_mask(family, inputs, output, cotangent, target, unit)
        return _of_norm(family, role, inputs, cotangent, target, wrong, gradient.dtype)


def _of_norm(
    norm: Norm,
    role: str,
    inputs: Inputs,
    cotangent: np.ndarray,
    target: np.ndarray,
    wrong: np.ndarray | None,
    dtype: np.dtype,
) -> Diagnosis:
    if role == "x":
        hypotheses = mistakes.of_x(norm, inputs, cotangent)
    else:
        hypotheses = mistakes.of_parameter(norm, role, inputs, cotangent)
    right = next(hypotheses)
    unit = _unit(right, norm, role, inputs, cotangent, dtype)
    search = _Search(target, Factors.of(norm, role, norm.has_weight(inputs)), unit)
    most = itertools.islice(hypotheses, WORK // target.size)
    found = search.simplest(right, most, _other_eps(norm, role, inputs, cotangent, search))
    if wrong is None:  # where not every element was looked at, those that the formula does not give
        wrong = search.off(right)
    return found or search.refusal(right, norm.name, wrong)


def _of_mask(
    mask: Mask, inputs: Inputs, output: np.ndarray, cotangent: np.ndarray, target: np.ndarray, unit: float
) -> Diagnosis | None:
    x = np.asarray(inputs[mask.x], np.float64)
    if x.shape != output.shape or not output.any():
        return None
    seen = (output != 0) & (x != 0)
    scale = float(np.median(output[seen] / x[seen]))
    kept = np.where(x != 0, output != 0, target != 0)
    search = _Search(target, Factors.of_mask(), unit)
    hypotheses = mistakes.of_mask(mask, kept, scale, cotangent, target)
    right = next(hypotheses)
    found = search.simplest(right, hypotheses) or search.refusal(right, mask.name, None)
    return found if found.wrong else None  # where x is zero, the mask that was seen may be another


class _Search:
    """The wrong gradient, and how factors in it are read; `unit` is the relative rounding of the terms."""

    def __init__(self, target: np.ndarray, factors: Factors, unit: float) -> None:
        self.target, self.factors, self.unit = target, factors, unit
        self._size = float(np.linalg.norm(target))

    def simplest(self, right: Hypothesis, *others: Iterable[Hypothesis]) -> Diagnosis | None:
        """The least complex hypothesis that explains the gradient, the first of equals; or None."""
        best: tuple[int, Diagnosis] | None = None
        for hypothesis in itertools.chain([right], *others):
            fit = self.fit(hypothesis)
            if not fit.explains or (hypothesis.words and self._same(hypothesis, right)):
                continue
            if np.any(fit.errors > DETERMINED):
                if not hypothesis.words and best is None:
                    best = (AMBIGUOUS, fit.diagnosis(_COLLINEAR))
                continue
            complexity, words = self.factors.read(
                list(hypothesis.terms), fit.coefficients, fit.errors, hypothesis.expected
            )
            complexity += hypothesis.complexity
            sentence = "; ".join(part for part in (hypothesis.words, words) if part)
            wrong = bool(sentence)
            if not wrong:
                known = max(self.unit, DEVIATION)
                sentence = f"every term is right, to the {known:.0e} that rounding explains at this input"
                complexity = NOTHING_WRONG
            if best is None or complexity < best[0]:
                best = (complexity, fit.diagnosis(sentence, wrong))
            if complexity <= SIMPLE:
                break
        return None if best is None else best[1]

    @staticmethod
    def _same(mistake: Hypothesis, right: Hypothesis) -> bool:
        """Whether a mistake changes nothing here, as weight after a mean in which it is constant."""
        (columns, expected), (others, wanted) = right.columns(), mistake.columns()
        value = expected @ columns
        floor = rounding_floor(value.dtype, value.size)
        return bool(np.linalg.norm(wanted @ others - value) <= floor * np.linalg.norm(value))

    def fit(self, hypothesis: Hypothesis) -> _Fit:
        """Fit with the expected coefficients; else those of its own terms free; else those of all terms."""
        columns, expected = hypothesis.columns()
        best = self._fixed(hypothesis, columns, expected)
        # Every other fit is made for the right formula, whose coefficients are reported in any case.
        if not np.isfinite(columns).all() or (hypothesis.words and not self._comes_near(columns)):
            return best
        for free in dict.fromkeys([tuple(map(int, np.flatnonzero(expected))), tuple(range(len(columns)))]):
            if best.explains or len(free) >= self.target.size:
                break
            best = self._free(hypothesis, columns, list(free), expected)
        return best

    def _comes_near(self, columns: np.ndarray) -> bool:
        """Whether a fit with half of the digits, which costs little, leaves next to nothing."""
        target = self.target.ravel()
        coefficients, *_ = np.linalg.lstsq(columns @ columns.T, columns @ target, rcond=None)
        left = float(np.linalg.norm(target - coefficients @ columns))
        size = float(np.abs(coefficients) @ np.linalg.norm(columns, axis=1))
        return left <= max(NEARLY, self.unit) * (size + self._size)

    def _fixed(self, hypothesis: Hypothesis, columns: np.ndarray, coefficients: np.ndarray) -> _Fit:
        return self._judged(hypothesis, columns, coefficients, np.zeros(len(columns)))

    def _free(
        self, hypothesis: Hypothesis, columns: np.ndarray, free: list[int], expected: np.ndarray
    ) -> _Fit:
        sizes = np.linalg.norm(columns, axis=1)
        free = [
            k for k in free if sizes[k] > 0
        ]  # a term that vanishes here has any coefficient, and no error
        coefficients, errors = np.where(sizes > 0, 0.0, expected), np.zeros(len(columns))
        if free:
            left, singular, right = np.linalg.svd((columns[free] / sizes[free, None]).T, full_matrices=False)
            usable = np.where(singular > SINGULAR * singular[0], singular, np.inf)
            coefficients[free] = right.T @ (left.T @ self.target.ravel() / usable) / sizes[free]
            # Rounding of the terms, each by its own size, and of the gradient, by the inverse of the terms.
            rounding = self.unit * (np.abs(coefficients[free]) @ sizes[free] + self._size)
            tiny = float(np.finfo(float).tiny)
            errors[free] = (
                rounding * np.linalg.norm(right / np.fmax(singular, tiny)[:, None], axis=0) / sizes[free]
            )
        return self._judged(hypothesis, columns, coefficients, errors)

    def _judged(
        self, hypothesis: Hypothesis, columns: np.ndarray, coefficients: np.ndarray, errors: np.ndarray
    ) -> _Fit:
        left = float(np.linalg.norm(self.target.ravel() - coefficients @ columns))
        allowed = self.unit * float(np.abs(coefficients) @ np.linalg.norm(columns, axis=1))
        relative = left / self._size if self._size > 0 else math.inf if left else 0.0
        return _Fit(hypothesis, coefficients, errors, relative, left <= allowed)

    def refusal(self, right: Hypothesis, name: str, wrong: np.ndarray | None) -> Diagnosis:
        """What is said where nothing explains the gradient."""
        fixed = self._fixed(right, *right.columns())
        if wrong is not None and self._right_elsewhere(right, wrong):
            count = int(np.sum(wrong))
            sentence = (
                f"the other {wrong.size - count} elements follow the formula of {name} to rounding: look at "
                f"what is done to {'this one' if count == 1 else f'these {count}'} alone (an index, a bound, "
                "a branch), not at the terms"
            )
            return fixed.diagnosis(sentence)
        if fixed.residual < NEARLY:
            rounded = like_float32(fixed.residual, FLOAT32)
            rest = rounded or ": something differs by very little, and no known mistake explains it"
            return fixed.diagnosis(f"all terms of {name} are there, to {fixed.residual:.0e}{rest}")
        if self._is_permuted(right):
            sentence = (
                f"these are the values that the formula of {name} gives, at other places: look at the indices"
            )
            return fixed.diagnosis(sentence)
        fit = self.fit(right)
        sentence = (
            f"no combination of the known terms of {name} explains this gradient (residual "
            f"{fit.residual:.2g}): not a mistake of this family that is known here"
        )
        return fit.diagnosis(sentence)

    def _is_permuted(self, right: Hypothesis) -> bool:
        columns, expected = right.columns()
        apart = np.sort(expected @ columns) - np.sort(self.target, axis=None)
        return bool(
            np.all(np.abs(apart) <= self.unit * np.max(np.abs(columns)) * math.sqrt(self.target.size))
        )

    def _right_elsewhere(self, right: Hypothesis, wrong: np.ndarray) -> bool:
        few = wrong.any() and 2 * np.sum(wrong) <= wrong.size
        return bool(few and not np.any(self.off(right) & ~wrong))

    def off(self, right: Hypothesis) -> np.ndarray:
        """Which elements the right formula does not give, to what rounding explains of the largest."""
        columns, expected = right.columns()
        error = np.abs(self.target - (expected @ columns).reshape(self.target.shape))
        off: np.ndarray = error > self.unit * np.max(np.abs(columns)) * math.sqrt(self.target.size)
        return off


_COLLINEAR = (
    "the terms cannot be told apart at these shapes and values: several combinations explain this gradient; "
    "use slices of at least 4 different values"
)


def _unit(
    right: Hypothesis,
    norm: Norm,
    role: str,
    inputs: Inputs,
    cotangent: np.ndarray,
    dtype: np.dtype,
) -> float:
    """The relative rounding of the terms: a floor, and what moving x by a few ulp does to them."""
    x = inputs[norm.x]
    assert x is not None
    moved = list(inputs)
    moved[norm.x] = jiggled(x, np.random.default_rng(0))
    again = next(
        mistakes.of_x(norm, moved, cotangent)
        if role == "x"
        else mistakes.of_parameter(norm, role, moved, cotangent)
    )
    changes = [
        float(np.linalg.norm(again.terms[name] - term) / size)
        for name, term in right.terms.items()
        if (size := float(np.linalg.norm(term))) > 0 and right.expected[name]
    ]
    return rounding_floor(dtype, x.size) + SAFETY * max(changes, default=0.0)


def _other_eps(
    norm: Norm, role: str, inputs: Inputs, cotangent: np.ndarray, search: _Search
) -> Iterator[Hypothesis]:
    """The right formula with the ε that fits best, where there is one."""
    for place, at in mistakes.with_eps(norm, role, inputs, cotangent):

        def left(eps: float, at: mistakes.AtEps = at) -> np.ndarray:
            its = at(eps)
            return search.target - sum(its.expected[name] * term for name, term in its.terms.items())

        tried = [eps for eps in (*EPS_TRIED, norm.eps) if eps > 0 or np.isfinite(left(0.0)).all()]
        eps = min(tried, key=lambda eps: float(np.linalg.norm(left(eps))))
        if not search.fit(at(eps)).explains:
            fitted = _refined(left, eps)
            rounded = float(f"{fitted:.2e}")
            eps = rounded if search.fit(at(rounded)).explains else fitted
        if eps != norm.eps:
            its = at(eps)
            there = "it is left out" if eps == 0 else f"{eps:.6g}"
            words = f"ε differs{place}: {there} here, {norm.eps:.6g} in the forward pass"
            yield Hypothesis(words, its.terms, its.expected, 1 if eps in EPS_TRIED else FITTED)


def _refined(left: Callable[[float], np.ndarray], eps: float) -> float:
    """Gauss and Newton's way from a guess of ε to the one that leaves least."""
    for _ in range(EPS_STEPS):
        step = max(1e-4 * eps, 1e-14)
        here = left(eps)
        slope = (left(eps + step) - left(max(eps - step, 0.0))) / (step + min(eps, step))
        steepness = float(np.vdot(slope, slope))
        if not steepness > 0:
            break
        new = eps - float(np.vdot(slope, here)) / steepness
        new = min(max(new, eps / 8), 8 * eps + 1e-12)
        if abs(new - eps) <= 1e-13 * eps:
            break
        eps = new
    return eps
