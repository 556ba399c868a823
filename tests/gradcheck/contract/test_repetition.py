"""Repetition: races are found, sums in a changing order are not blamed, and what may be missed is said."""

from __future__ import annotations

import numpy as np
import pytest
from pairs import batch_norm, batch_norm_inputs, norm_backward

import gradcheck
from gradcheck import Verdict
from gradcheck.contract import probes, repetition
from gradcheck.subject import make_subject

MEANS = [0.0, 3e6]


def inputs(mean=0.0, dtype=np.float64, shape=(24, 5)):
    x, weight, bias = batch_norm_inputs(np.random.default_rng(2), shape)
    return tuple(array.astype(dtype) for array in (x + mean, weight, bias))


def probed(forward, backward, arrays, **options):
    with np.errstate(all="ignore"):
        return probes.probe(make_subject(forward, backward, arrays, **options), np.random.default_rng(3))


def check_named(answers, name):
    return next(check for check in answers.checks if check.name == name)


def shuffled_pair(seed):
    """BatchNorm whose sums are taken in another order on every call, as atomic additions do."""
    rng = np.random.default_rng(seed)

    def mean(array):
        total = np.zeros(array.shape[1], array.dtype)
        for row in rng.permutation(len(array)):
            total = total + array[row]
        return total / array.dtype.type(len(array))

    def forward(x, weight, bias):
        centre = x - mean(x)
        rstd = 1 / np.sqrt(mean(centre * centre) + x.dtype.type(1e-5))
        return centre * rstd * weight + bias, (centre * rstd, rstd, weight)

    def backward(saved, cotangent):
        x_hat, rstd, weight = saved
        g = cotangent * weight
        count = g.dtype.type(len(g))
        dx = rstd * (g - mean(g) - x_hat * mean(g * x_hat))
        return dx, mean(cotangent * x_hat) * count, mean(cotangent) * count

    return forward, backward


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("seed", range(5))
def test_sums_in_a_changing_order_are_noted_and_not_blamed(dtype, seed):
    answers = probed(*shuffled_pair(seed), inputs(dtype=dtype))
    assert {check.verdict for check in answers.checks} == {Verdict.PASS}, answers.checks
    assert any("forward is not bit-reproducible" in note for note in answers.notes)
    assert any("backward is not bit-reproducible" in note for note in answers.notes)


@pytest.mark.parametrize("mean", MEANS)
def test_sums_in_a_changing_order_pass_far_from_zero(mean):
    answers = probed(*shuffled_pair(0), inputs(mean))
    assert {check.verdict for check in answers.checks} == {Verdict.PASS}, answers.checks
    report = gradcheck.check_pair(*shuffled_pair(0), inputs(mean))
    assert report.verdict in (Verdict.PASS, Verdict.INCONCLUSIVE), str(report)


@pytest.mark.parametrize("seed", range(8))
def test_a_changing_order_at_hopeless_inputs_accuses_nobody(seed):
    """float32 keeps three bits of these: whatever the order of a sum does, nothing follows from it."""
    arrays = inputs(shape=(7, 130))
    arrays = (np.float32(1e4 + 1e-3 * arrays[0]), *map(np.float32, arrays[1:]))
    answers = probed(*shuffled_pair(seed), arrays)
    assert not {check.verdict for check in answers.checks} & {Verdict.FAIL, Verdict.ERROR}, answers.checks


def test_where_rounding_cannot_be_measured_nobody_is_accused():
    x = np.random.default_rng(0).standard_normal(5)
    noise = np.random.default_rng(1)

    def forward(values):
        if not np.isin(values, x).all():
            raise ValueError("only these")
        return values * values, values.copy()

    def backward(values, cotangent):
        return (2 * values * cotangent * (1 + 1e-9 * noise.random()),)

    check = check_named(probed(forward, backward, (x,)), "backward repeats")
    assert check.verdict is Verdict.INCONCLUSIVE
    assert "resolution: what rounding explains is not known" in check.reason


def losing(rate, seed=0):
    """A backward that now and then loses one row of the sum behind the gradient of weight."""
    rng = np.random.default_rng(seed)

    def backward(saved, cotangent):
        dx, dweight, dbias = norm_backward(saved, cotangent)
        if rng.random() < rate:
            row = int(rng.integers(len(cotangent)))
            dweight = dweight - cotangent[row] * saved.x_hat[row]
        return dx, dweight, dbias

    return backward


@pytest.mark.parametrize("rate", [0.3, 0.7, 1.0])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("seed", range(3))
def test_a_race_that_loses_updates_fails_however_often(rate, dtype, seed):
    answers = probed(batch_norm, losing(rate, seed), inputs(dtype=dtype))
    check = check_named(answers, "backward repeats")
    assert check.verdict is Verdict.FAIL, answers.checks
    assert "gives another result" in check.reason
    assert "the gradient of weight differs by" in check.reason


def test_a_rare_race_needs_stress():
    quiet = probed(batch_norm, losing(0.004, seed=1), inputs())
    assert check_named(quiet, "backward repeats").verdict is Verdict.PASS
    stressed = probed(batch_norm, losing(0.004, seed=1), inputs(), stress=2000)
    check = check_named(stressed, "backward repeats")
    assert check.verdict is Verdict.FAIL
    assert "under stress, in " in check.reason and " of 2000 repetitions" in check.reason


@pytest.mark.parametrize(("stress", "runs", "percent"), [(0, 24, "12 %"), (276, 300, "0.99 %")])
def test_the_rate_that_may_be_missed_is_said(stress, runs, percent):
    report = gradcheck.check_pair(batch_norm, norm_backward, inputs(), stress=stress)
    assert report.unseen == repetition.unseen_rate(runs)
    assert f"  a race in fewer than {percent} of the runs would not be seen" in str(report).splitlines()[-1]


def test_the_rate_that_may_be_missed_leaves_five_percent():
    for runs in (1, 24, 1024):
        assert (1 - repetition.unseen_rate(runs)) ** runs == pytest.approx(0.05)


def test_the_backward_runs_are_as_many_as_the_note_says():
    counted = []

    def backward(saved, cotangent):
        counted.append(cotangent.tobytes())
        return norm_backward(saved, cotangent)

    probed(batch_norm, backward, inputs())
    most_common = max(counted.count(each) for each in set(counted))
    assert most_common >= 24, "the layouts of the cotangent and of the inputs have the same numbers too"


@pytest.mark.parametrize(
    ("good", "when"), [(1, "every time but the first"), (12, "from repetition 11 of 16 on")]
)
def test_the_moment_a_context_wears_out_is_told(good, when):
    def forward(x):
        return x * x, (x, [])

    def backward(saved, cotangent):
        x, calls = saved
        calls.append(1)
        return (2 * x * cotangent * (1 if len(calls) <= good else 2),)

    answers = probed(forward, backward, (np.ones(3),))
    reason = check_named(answers, "backward repeats").reason
    # Good runs are the first, that of the probe for returned arrays, and the repetitions before.
    assert f"a second backward over the same context gives another result, {when}: " in reason, reason
    assert "(3 of 3 elements differ" in reason and " instead of " in reason


def test_an_occasional_difference_is_counted():
    calls = []  # the sixth to the 21st are those that measure the rounding

    def backward(saved, cotangent):
        calls.append(1)
        return (cotangent * (2.0 if len(calls) in (5, 23) else 1.0),)

    answers = probed(lambda x: (x * 1, None), backward, (np.ones(3),))
    assert (
        "in 2 of 16 repetitions: the gradient of x differs by"
        in check_named(answers, "backward repeats").reason
    )


class LastCall:
    """Keeps what its last forward saw, and answers for any context from that."""

    def forward(self, x, weight, bias):
        output, self.saved = batch_norm(x, weight, bias)
        return output, None

    def backward(self, saved, cotangent):
        return norm_backward(self.saved, cotangent)


class CallBefore:
    """Normalizes in backward with the statistics of the call before the last."""

    older = newer = None

    def forward(self, x, weight, bias):
        output, saved = batch_norm(x, weight, bias)
        self.older, self.newer = self.newer, saved.rstd
        return output, (saved, self.older)

    def backward(self, saved, cotangent):
        mine, older = saved
        return norm_backward(mine if older is None else mine._replace(rstd=older), cotangent)


@pytest.mark.parametrize("layer", [LastCall, CallBefore])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_the_state_of_another_call_fails(layer, dtype):
    made = layer()
    answers = probed(made.forward, made.backward, inputs(dtype=dtype))
    check = check_named(answers, "calls are independent")
    assert check.verdict is Verdict.FAIL, answers.checks
    assert "backward depends on another call of forward than its own: the gradient of x" in check.reason


@pytest.mark.parametrize("into_a_buffer", [False, True])
def test_a_forward_without_a_fixed_seed_is_stochastic(into_a_buffer):
    rng, buffer = np.random.default_rng(0), np.empty((4, 5))

    def forward(x):
        mask = rng.random(x.shape) < 0.5
        return np.multiply(x, mask, out=buffer if into_a_buffer else None), mask

    answers = probed(forward, lambda mask, c: (c * mask,), (np.ones((4, 5)),))
    check = answers.checks[-1]
    assert check.verdict is Verdict.INCONCLUSIVE and not answers.sound
    assert check.reason.startswith("stochastic: forward gives another output")


def dropout(ring):
    """Dropout whose masks go to so many buffers in turn, or to new ones for 0."""
    buffers = [np.empty((4, 5), bool) for _ in range(ring)]

    def forward(x, key):
        keep = np.random.default_rng(key).random(x.shape) < 0.5
        if buffers:
            buffers.append(buffers.pop(0))
            buffers[0][...] = keep
        return x * keep, buffers[0] if buffers else keep

    return forward, lambda keep, cotangent: (cotangent * keep, None)


@pytest.mark.parametrize(
    ("ring", "verdict"), [(0, Verdict.PASS), (1, Verdict.FAIL), (2, Verdict.FAIL), (3, Verdict.PASS)]
)
def test_masks_in_buffers_that_take_turns_fail_up_to_two(ring, verdict):
    arrays = np.random.default_rng(0).standard_normal((4, 5)), np.array([8734, 1_000_000])
    answers = probed(*dropout(ring), arrays, differentiable=(0,))
    check = check_named(answers, "calls are independent")
    assert check.verdict is verdict, check
    if verdict is Verdict.FAIL:
        assert "backward depends on another call of forward than its own" in check.reason


@pytest.mark.parametrize("what", ["output", "gradient"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_what_is_kept_by_the_identity_of_an_array_fails(what, dtype):
    kept = {}

    def forward(x, weight, bias):
        output, saved = batch_norm(x, weight, bias)
        old_x, old_output, old_saved = kept.get("last", (None, output, saved))
        if old_x is not x:
            old_output, old_saved = output, saved
        kept["last"] = x, old_output, old_saved
        return (old_output.copy(), saved) if what == "output" else (output, old_saved)

    answers = probed(forward, norm_backward, inputs(dtype=dtype))
    check = check_named(answers, "calls are independent")
    assert check.verdict is Verdict.FAIL, answers.checks
    assert "something is kept of an array that has been written in place since" in check.reason
    assert ("an output of the past" in check.reason) is (what == "output")


@pytest.mark.parametrize(
    ("constant", "rolled"),
    [
        (np.array([True, False]), True),
        (np.array([0.5, 1.0]), True),
        (np.array([8734, 1_000_000]), True),
        (np.array([0, 3]), False),  # may be indices
        (np.array([-8734, 1_000_000]), False),
        (np.array(["a", "b"]), False),
    ],
)
def test_constants_vary_between_calls_unless_they_may_be_indices(constant, rolled):
    seen = set()

    def forward(x, other):
        seen.add(other.tobytes())
        return x * 2, None

    probed(forward, lambda _, c: (2 * c, None), (np.arange(1.0, 6), constant), differentiable=(0,))
    assert (len(seen) == 2) is rolled


def test_where_another_constant_is_not_legal_x_alone_varies():
    x, seen = np.array([1.0, 2.0, 5.0]), set()

    def forward(values, knots):
        if np.any(np.diff(knots) < 0):
            raise ValueError("knots must be sorted")
        seen.add(tuple(values.tolist()))
        return values * 2, None

    probed(forward, lambda _, c: (2 * c, None), (x, np.arange(3.0)), differentiable=(0,))
    assert tuple(np.roll(x, 1).tolist()) in seen
