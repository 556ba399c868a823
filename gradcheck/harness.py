"""The two entrances: a pair of NumPy functions, and a function of a framework's tensors."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from gradcheck import accuracy, arguments
from gradcheck.adapters import Pair
from gradcheck.adapters.shared import described, refuse_class
from gradcheck.contract import probes
from gradcheck.contract.requests import check_requests
from gradcheck.derivatives.complex_step import check_by_complex_step
from gradcheck.derivatives.elsewhere import check_elsewhere
from gradcheck.derivatives.forward_mode import check_jvp
from gradcheck.derivatives.gradient import Gradients, check_gradients
from gradcheck.derivatives.second_order import COTANGENT, check_second_order
from gradcheck.diagnosis import findings
from gradcheck.diagnosis.findings import Finding
from gradcheck.judge import Check, Verdict
from gradcheck.repeating import place_of, place_of_vjp, repeating_line
from gradcheck.report import Report
from gradcheck.subject import Subject, Violation, make_subject, names_of, positions

__all__ = ["ADAPTERS", "check", "check_pair", "with_second_order"]

# Modules of gradcheck.adapters, named like their framework, in the order in which they are asked.
ADAPTERS = ("tinygrad_bn", "torch", "jax")
REGISTRY = "tinygrad_bn"  # whose operations can be named


def check_pair(
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    inputs: Sequence[np.ndarray | None],
    *,
    jvp: Callable[..., Any] | None = None,
    reference: Callable[..., Any] | None = None,
    differentiable: Iterable[int | str] | None = None,
    zero: Iterable[int | str] = (),
    state: Iterable[int | str] = (),
    stress: int = 0,
    terms: Any = None,
    input_names: Sequence[str] | None = None,
    name: str | None = None,
    framework: bool = False,
    explain: bool = True,
    seed: int = 0,
) -> Report:
    """Check a forward pass and the backward pass that claims to be its vector-Jacobian product.

        output, saved = forward(*inputs);   gradients = backward(saved, ȳ);   gradientᵢ = (∂output/∂inputᵢ)ᵀ ȳ

    Second derivatives are checked by giving the backward pass as the forward pass of another pair.

    Args:
        forward: returns (output, saved); the output is one array of the inputs' dtype, saved is anything.
        backward: takes (saved, cotangent), the cotangent shaped like the output; returns a tuple with one
            entry per input: an array of its shape and dtype, or None where no gradient is wanted.
        inputs: arrays of float16, float32 or float64, or None for an absent one, which is passed on. The
            lower precisions ask two questions: whether the mathematics is right, judged on float64 copies,
            and whether the results are as near to the float64 ones as the inputs allow.
        jvp: a hand-written forward mode, jvp(inputs, tangents) → tangent of the output, with a tangent per
            input, None for those that get no gradient. It is compared with backward.
        reference: a plain definition of the output, reference(*inputs) → output, run on float64 copies, and,
            where it can be, on complex ones, for derivatives that are exact to rounding.
        differentiable: names or positions of the inputs that get a gradient; all arrays by default.
        zero: names or positions of the inputs whose gradient is exactly zero by the nature of the operation.
        state: names or positions of the inputs that the pair may write to, such as running statistics; every
            call gets a fresh copy.
        stress: how many more repetitions of the backward pass are to look for rare races.
        terms: the family of the operation, a record of gradcheck.diagnosis.terms, for the diagnosis after a
            failure; by default a normalization is recognised by its output.
        input_names: names for the report; by default those of forward's parameters.
        name: the name of the operation in the report; by default that of forward.
        framework: allow what a framework may do: to hand the cotangent on as a gradient.
        explain: whether to look for the place and the term of a mistake; False where only verdicts count, as
            the search after a FAIL takes many times as long as they do.
        seed: an integer, at least 0, of the directions and cotangents; the same seed gives the same report.

    Returns:
        A Report. Exceptions of forward and backward are verdicts in it, not raised.

    Raises:
        TypeError, ValueError: an argument of this call is not what is described here.
    """
    subject = make_subject(
        forward, backward, inputs,
        differentiable=differentiable, zero=zero, state=state, jvp=jvp, stress=stress, terms=terms,
        input_names=input_names, name=name, framework=framework,
    )  # fmt: skip
    arguments.validate_count("seed", seed)
    if reference is not None:
        arguments.validate_callables(reference=reference)
    began = time.perf_counter()
    run = _Run(subject, seed)
    with np.errstate(all="ignore"):  # the ladder visits points where the operation may overflow
        run.everything(reference, explain)
    report = Report(
        name=subject.name,
        inputs=tuple(_describe(subject)),
        checks=tuple(run.checks),
        evaluations=sum(each.evaluations for each in run.subjects),
        vjps=sum(each.vjps for each in run.subjects),
        seconds=time.perf_counter() - began,
        seed=seed,
        findings=tuple(run.findings),
        notes=tuple(run.notes),
        unseen=run.unseen,
    )
    options = {"differentiable": differentiable, "zero": zero, "state": state, "stress": stress}
    place = "" if framework else place_of(backward)
    return _repeatable(report, "check_pair", {"forward": forward, "backward": backward}, options, place)


def check(
    fn: Callable[..., Any] | str,
    inputs: Sequence[Any],
    *,
    order: int = 1,
    attributes: dict[str, Any] | None = None,
    seed: int = 0,
    **options: Any,
) -> Report:
    """Check the gradient that a framework computes for a function of its tensors.

    Args:
        fn: takes the inputs, returns one tensor; or the name of a registered operation of tinygrad_bn.
        inputs: tensors of one supported framework, None or NumPy arrays among them.
        order: 2 to check the gradient of the gradient too, and that the Hessian is symmetric.
        attributes: keyword arguments of a registered operation.
        seed: of the directions and cotangents.
        **options: as for check_pair.

    Raises:
        TypeError: no input belongs to a supported framework, fn is a class, or an option is unknown.
        ValueError: order=2 for gradients that cannot be differentiated again.
    """
    arguments.validate_inputs(inputs)
    if order not in (1, 2):
        raise ValueError(f"order must be 1 or 2; got {order!r}")
    arguments.validate_options(options, check_pair)
    if not isinstance(fn, str):
        refuse_class(fn)
        if attributes:
            raise TypeError(
                f"attributes are for a registered operation given by name; got {_kind(fn)} for fn"
            )
    if options.get("differentiable") is None:
        arguments.validate_flat(inputs)
    adapter = _adapter(fn, inputs)
    function = adapter.by_name(fn, attributes or {}) if isinstance(fn, str) else fn
    wanted = options.get("differentiable")
    if wanted is not None:
        names = names_of(described(function), len(inputs), options.get("input_names"))
        wanted = positions(wanted, names, "differentiable")
    pair = adapter.pair(function, inputs, wanted)
    defaults = {"name": fn if isinstance(fn, str) else pair.name, "jvp": pair.jvp}
    chosen = {**defaults, **options, "differentiable": pair.differentiable}
    if order == 2 and pair.second is None:
        why = "; ".join(remark for remark in pair.remarks if remark.startswith("second order"))
        raise ValueError(f"order=2 needs gradients that can be differentiated again; {why}")
    report = check_pair(pair.forward, pair.backward, pair.inputs, seed=seed, framework=True, **chosen)
    if order == 2 and report.verdict is not Verdict.ERROR:
        report = with_second_order(report, pair, options.get("input_names"))
    if report.verdict < Verdict.INCONCLUSIVE:
        report = _with_requests(report, pair, options)
    report = dataclasses.replace(report, notes=(*report.notes, *pair.remarks))
    also = {"order": order} if order > 1 else {}
    place = place_of_vjp(function)
    return _repeatable(report, "check", {"fn": fn}, {"attributes": attributes, **also, **options}, place)


def _repeatable(
    report: Report, entrance: str, functions: dict[str, Any], options: dict[str, Any], place: str
) -> Report:
    """The report with the line that repeats its check, where somebody may want to, and the place to mend."""
    if report.verdict is Verdict.PASS:
        return report
    again = repeating_line(entrance, functions, report.seed, options)
    return dataclasses.replace(report, again=again, place=place)


def _adapter(fn: Callable[..., Any] | str, inputs: Sequence[Any]) -> ModuleType:
    """The adapter of the inputs' framework; a framework that is not loaded cannot own them."""
    if isinstance(fn, str):
        return importlib.import_module(f"gradcheck.adapters.{REGISTRY}")
    for framework in ADAPTERS:
        module = f"gradcheck.adapters.{framework}"
        if framework in sys.modules or module in sys.modules:
            adapter = importlib.import_module(module)
            if adapter.recognises(fn, inputs):
                return adapter
    kinds = ", ".join(sorted({_kind(value) for value in inputs}))
    raise TypeError(
        f"check() got inputs of {kinds}; it takes tensors of {', '.join(ADAPTERS)}. For NumPy functions with "
        "a backward pass of their own, write check_pair(forward, backward, inputs); for a JAX function of "
        "NumPy arrays, give it jax.numpy.asarray(x)"
    )


def _kind(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__name__}"


def _with_requests(report: Report, pair: Pair, options: dict[str, Any]) -> Report:
    """Add the check that nothing changes where fewer gradients are asked for."""
    began = time.perf_counter()
    chosen = {key: options[key] for key in ("state", "input_names") if key in options}
    subject = make_subject(
        pair.forward, pair.backward, pair.inputs, differentiable=pair.differentiable, framework=True, **chosen
    )
    with np.errstate(all="ignore"):
        check = check_requests(pair, subject, np.random.default_rng([report.seed, 4]))
    return dataclasses.replace(
        report,
        checks=(*report.checks, check),
        evaluations=report.evaluations + subject.evaluations,
        vjps=report.vjps + subject.vjps,
        seconds=report.seconds + time.perf_counter() - began,
    )


def with_second_order(report: Report, pair: Pair, input_names: Sequence[str] | None) -> Report:
    """Add the checks of (*inputs, cotangent) ↦ gradients, at a random cotangent."""
    assert pair.second is not None
    began = time.perf_counter()
    rng = np.random.default_rng([report.seed, 2])
    output, _ = pair.forward(*pair.inputs)
    cotangent = np.asarray(rng.standard_normal(output.shape).astype(output.dtype))
    second = pair.second(cotangent)
    subject = make_subject(
        second.forward,
        second.backward,
        second.inputs,
        differentiable=second.differentiable,
        input_names=(*names_of(pair.forward, len(pair.inputs), input_names), COTANGENT),
        framework=True,
    ).in_float64()
    with np.errstate(all="ignore"):
        checks = check_second_order(subject, rng)
    return dataclasses.replace(
        report,
        checks=(*report.checks, *checks),
        evaluations=report.evaluations + subject.evaluations,
        vjps=report.vjps + subject.vjps,
        seconds=report.seconds + time.perf_counter() - began,
    )


class _Run:
    """All checks of one pair, in their order, with what is found out on the way."""

    def __init__(self, subject: Subject, seed: int) -> None:
        self._subject = subject
        # Apart, so that the directions do not hang on how many numbers the probes drew.
        self._of_probes, self._rng, _, self._elsewhere = (
            np.random.default_rng([seed, stream]) for stream in range(4)
        )  # the third is that of the second order
        self.subjects = [subject]  # and its twin in more precision, if it has one
        self.checks: list[Check] = []
        self.notes = _constant_inputs(subject)
        self.findings: list[Finding] = []
        self.unseen: float | None = None

    def everything(self, reference: Callable[..., Any] | None, explain: bool) -> None:
        """The promises; then, if numbers may be taken from the pair, its derivatives and its values."""
        self.checks, sound, notes, self.unseen = probes.probe(self._subject, self._of_probes)
        self.notes += notes
        if not sound:
            return
        try:
            self._numbers(reference, explain)
        except Violation as broken:
            self.checks.append(Check("gradient", broken.verdict, broken.reason, broken.input))
        if reference is not None:
            self.checks += accuracy.check_reference(self._subject, reference, self._rng)

    def _numbers(self, reference: Callable[..., Any] | None, explain: bool) -> None:
        subject, rng = self._subject, self._rng
        exact, precision = accuracy.exact_twin(subject)
        if exact is not subject:
            self.subjects.append(exact)
        if precision is not None:
            self.checks.append(precision)
        if exact.dtype != np.float16:  # in which no difference is precise enough
            gradients = check_gradients(exact, rng)
            self.checks += [*gradients.checks, *check_jvp(exact, gradients, rng)]
            if reference is not None:
                checks, notes = check_by_complex_step(exact, gradients, reference, rng)
                self.checks += checks
                self.notes += notes
            if all(check.verdict < Verdict.INCONCLUSIVE for check in self.checks):
                self.checks += check_elsewhere(exact, self._elsewhere)
            if explain:
                self._explain(exact, gradients)
                self._draw_curves(gradients)
        if exact.dtype != subject.dtype:
            self.checks += accuracy.check_low_precision(subject, exact, rng, output=reference is None)

    def _explain(self, subject: Subject, gradients: Gradients) -> None:
        """Find out about each wrong gradient, where it was judged."""
        for check in gradients.checks:
            if check.verdict is Verdict.FAIL and check.input is not None:
                place = gradients.elsewhere.get(check.input, subject)
                self.findings += findings.find(place, (check,), subject.terms, self._rng)

    def _draw_curves(self, gradients: Gradients) -> None:
        """Let each gradient that did not pass show how its numeric derivative came about."""
        for check, direction in zip(gradients.checks, gradients.directions, strict=False):
            if check.verdict is not Verdict.PASS:
                with contextlib.suppress(Violation):  # of a step so wide that it leaves the domain
                    at = self.checks.index(check)
                    self.checks[at] = dataclasses.replace(check, curve=direction.curve())


def _constant_inputs(subject: Subject) -> list[str]:
    """A note on inputs that hide a mistake: multiplying by ones, or adding zeros, changes nothing."""
    inputs = list(zip(subject.wanted_names(), subject.wanted(), strict=True))
    if len(inputs) < 2:
        return []
    constants = {0: "zeros", 1: "ones"}
    hiding = [
        f"{name} is all {words}"
        for name, array in inputs
        for value, words in constants.items()
        if array.size and np.all(array == value)
    ]
    if not hiding:
        return []
    them = "it" if len(hiding) == 1 else "them"
    mistake = f"a backward pass that forgets {them} may pass"
    return [f"{', '.join(hiding)}: {mistake}; draw {them} at random"]


def _describe(subject: Subject) -> list[str]:
    described: list[str] = []
    for label, array in zip(subject.names, subject.inputs, strict=True):
        if array is not None:
            described.append(f"{label} {array.shape}" + ("" if described else f" {array.dtype}"))
    return described
