"""What is found out about a gradient that is wrong: where, in which pattern, and in which of its terms."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradcheck.diagnosis.diagnose import diagnose
from gradcheck.diagnosis.localise import Place, localise
from gradcheck.diagnosis.patterns import describe
from gradcheck.diagnosis.recognise import gives, recognise
from gradcheck.diagnosis.slopes import Slopes
from gradcheck.diagnosis.terms import Family, Mask, Norm
from gradcheck.judge import FLOAT32, OUTLIER, Check, Verdict, like_float32
from gradcheck.subject import Subject

__all__ = ["Elements", "Finding", "find"]


@dataclass(frozen=True, slots=True)
class Elements:
    """A gradient, element by element: those that were looked at, which form a grid.

    grid: the indices of the elements along each axis of the input.
    analytic, numeric, bar: one number for each, in row-major order; numeric is known to ± bar.
    """

    grid: tuple[tuple[int, ...], ...]
    analytic: tuple[float, ...]
    numeric: tuple[float, ...]
    bar: tuple[float, ...]

    @classmethod
    def of(cls, place: Place) -> Elements:
        """The numbers of a Place as plain tuples."""
        numbers = (place.analytic, place.numeric, place.bar)
        return cls(
            tuple(tuple(indices.tolist()) for indices in place.grid),
            *(tuple(np.ravel(array).tolist()) for array in numbers),
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """How many elements the grid has along each axis."""
        return tuple(map(len, self.grid))


@dataclass(frozen=True, slots=True)
class Finding:
    """One wrong gradient.

    input, shape: the input whose gradient it is.
    index: the element that is furthest off, with its `analytic` and `numeric` value, the latter known to
        ± `bar`.
    differing, compared: how many of the elements that were looked at are wrong.
    pattern: the shape of the error in words; empty where it has none.
    norm: the operation that was recognised in a function that is not registered; empty where it was known.
    terms, residual: the coefficient of each named term in the wrong gradient, and what part of it they leave
        unexplained; () and None where the family of the operation is not known.
    sentence: the mistake in words, or that no combination of terms explains it.
    elements: the gradient that was looked at.
    """

    input: str
    shape: tuple[int, ...]
    index: tuple[int, ...]
    analytic: float
    numeric: float
    bar: float
    differing: int
    compared: int
    pattern: str = ""
    norm: str = ""
    terms: tuple[tuple[str, float], ...] = ()
    residual: float | None = None
    sentence: str = ""
    elements: Elements | None = None


def find(
    subject: Subject, checks: Sequence[Check], terms: Family | None, rng: np.random.Generator
) -> tuple[Finding, ...]:
    """Find out about every gradient that a check named "gradient" failed.

    Takes some 2,000 calls of forward for each.

    Args:
        subject: the pair that was checked, in float64 where it can be.
        checks: its checks.
        terms: the record of the operation, from terms.py; None: try to recognise a norm.
        rng: of the cotangent and the directions.

    Never raises: what cannot be found out is left empty, and a gradient that cannot be looked at is left out.
    """
    failed = {
        check.input: check.reason
        for check in checks
        if check.name == "gradient" and check.verdict is Verdict.FAIL
    }
    wanted = [index for index in subject.differentiable if subject.names[index] in failed]
    if not wanted:
        return ()
    # What is found out comes on top of a verdict, which it must never cost: code that is known to be wrong
    # may raise anything at the inputs that are tried here.
    with np.errstate(all="ignore"), contextlib.suppress(Exception):
        output, saved = subject.run_forward(subject.inputs)
        cotangent = np.asarray(rng.standard_normal(output.shape).astype(output.dtype))
        gradients = dict(zip(subject.differentiable, subject.run_backward(saved, cotangent), strict=True))
        run = _Run(subject, np.array(output), cotangent, rng)
        family, norm = _family(run, terms)
        found = (run.finding(index, np.array(gradients[index]), family, norm) for index in wanted)
        return tuple(_with_jump(each, failed[each.input]) for each in found if each is not None)
    return ()


def _with_jump(finding: Finding, reason: str) -> Finding:
    """The finding, which tells in place of the reason, and so must say too that the backward pass jumps."""
    if OUTLIER not in reason:
        return finding
    sentences = (finding.sentence, OUTLIER)
    return dataclasses.replace(finding, sentence="; ".join(filter(None, sentences)))


def _family(run: _Run, terms: Family | None) -> tuple[Family | None, str]:
    """The family of the operation; and in words if it had to be recognised, or is not as declared."""
    inputs, output = run.subject.inputs, run.output
    declared = ""
    if terms is not None:
        as_declared = False
        with contextlib.suppress(Exception):
            as_declared = not isinstance(terms, Norm) or gives(terms, inputs, output, output.dtype)
        if as_declared:
            return terms, ""
        declared = f"the output is not that of the {terms.name} that was declared"
    recognised = None
    with contextlib.suppress(Exception):
        recognised = recognise(inputs, output, run.slopes().contradict)
    if recognised is None:
        return None, declared
    family = recognised.family
    if isinstance(family, Mask):
        family = dataclasses.replace(family, drawn=run.may_draw(family))
    return family, f"{recognised.words}; {declared}" if declared else recognised.words


class _Run:
    """One forward pass, with its cotangent."""

    def __init__(
        self, subject: Subject, output: np.ndarray, cotangent: np.ndarray, rng: np.random.Generator
    ) -> None:
        self.subject, self.output, self.cotangent, self._rng = subject, output, cotangent, rng

    def slopes(self) -> Slopes:
        """Numeric derivatives for the same cotangent."""
        return Slopes(self.subject, self.output, self.cotangent, self._rng)

    def may_draw(self, mask: Mask) -> bool:
        """Whether a mask may be made of random numbers: it is no input, and another x has the same one."""
        inputs, kept = self.subject.inputs, self.output != 0
        others = [a for k, a in enumerate(inputs) if a is not None and k != mask.x and a.shape == kept.shape]
        if any(np.array_equal(a != 0, kept) or np.array_equal(a == 0, kept) for a in others):
            return False
        x = inputs[mask.x]
        assert x is not None
        other_x = -np.flip(x)
        with contextlib.suppress(Exception):
            output = self.subject.run_forward(self.subject.replaced(mask.x, other_x))[0]
            return bool(np.all((output != 0) == kept, where=(x != 0) & (other_x != 0)))
        return True

    def finding(self, index: int, gradient: np.ndarray, family: Family | None, norm: str) -> Finding | None:
        """What is found out about the gradient of one input; None where it is not wrong at this cotangent."""
        x = self.subject.inputs[index]
        assert x is not None
        place = pattern = None
        with contextlib.suppress(Exception):
            place = localise(self.subject, index, self.output, self.cotangent, gradient, self._rng)
            pattern = describe(place, x, self.output)
        if place is None:
            return None
        diagnosis = None
        if family is not None:
            wrong = place.wrong if place.complete else None
            with contextlib.suppress(Exception):
                diagnosis = diagnose(
                    family, index, self.subject.inputs, self.output, self.cotangent, gradient, wrong
                )
        sentence = _rounded(place) if diagnosis is None else self._with_names(diagnosis.sentence, family)
        if not place.wrong.any() and not (sentence if diagnosis is None else diagnosis.wrong):
            return None
        return Finding(
            input=self.subject.names[index],
            shape=x.shape,
            index=place.index,
            analytic=float(place.analytic[place.worst]),
            numeric=float(place.numeric[place.worst]),
            bar=float(place.bar[place.worst]),
            differing=int(np.sum(place.wrong)),
            compared=place.wrong.size,
            pattern=pattern or "",
            norm=norm,
            terms=() if diagnosis is None else diagnosis.terms,
            residual=None if diagnosis is None else diagnosis.residual,
            sentence=sentence,
            elements=Elements.of(place),
        )

    def _with_names(self, sentence: str, family: Family | None) -> str:
        """The sentence with the inputs that are weight and bias called by their names."""
        if not isinstance(family, Norm):
            return sentence
        roles = {"weight": family.weight, "bias": family.bias}
        names = {role: self.subject.names[k] for role, k in roles.items() if k is not None}
        return re.sub(r"\b(weight|bias)\b", lambda found: names.get(found[0], found[0]), sentence)


def _rounded(place: Place) -> str:
    """What an error of the size of float32's rounding suggests; empty for any other."""
    size = float(np.linalg.norm(place.numeric))
    error = float(np.linalg.norm(np.where(place.wrong, place.error, 0)))
    rounded = like_float32(error / size, FLOAT32) if size > 0 else ""
    return f"off by {error / size:.0e} of its size{rounded}" if rounded else ""
