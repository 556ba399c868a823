"""The checks see single edits of the kernels' own sources, except those that change nothing they could see.

The edits, and what runs them uncompiled, stand in source_mutants.py.
"""

from __future__ import annotations

import json
import signal

import pytest

FAMILIES = ("rows", "split", "cols", "dropout")
WIDER = "does again in float64 what was right in float32; what was not still fits in float32 here"
ALIKE = "here the statistics of a problem are all in range, or none; test_norm_kernels.py mixes them"
INVISIBLE = {
    "normalize_rows: centre = T(centre_of(mean[r], variance[r])) → "
    "centre = T(centre_of(mean[r], variance[0]))": (
        "any centre will do, because the shift makes up for it; a far one costs accuracy, which float64 has"
    ),
    "fits_row: means = fits(total, limits) & fits(moment, limits) & "
    "fits(rstd * rstd * moment * share, limits) → means = (fits(total, limits) | fits(moment, limits)) & "
    "fits(rstd * rstd * moment * share, limits)": ALIKE,
    "mark_outside: ok = fits_row(rstd[r], totals[r], moments[r], share, limits) → "
    "ok = fits_row(rstd[r], totals[0], moments[r], share, limits)": ALIKE,
    "pieces_of: most = COLUMNS if plan.rows < 4 * BACKWARD_TASKS else LONG_PAIR → "
    "most = COLUMNS if plan.rows < 5 * BACKWARD_TASKS else LONG_PAIR": "either way is right; one is faster",
    "differentiate_block: expand(weight[a // repeat:b // repeat], repeat, weights[0]) → "
    "expand(weight[a // repeat:b * repeat], repeat, weights[0])": "there is no place for what is too much",
    "differentiate_block: shift, slope = (np.empty(1), np.empty(1)) → "
    "shift, slope = (np.empty(1), np.empty(2))": "more scratch than is used",
    "differentiate_block: e = r + 1 → e = r + 2": "only the first of two is read",
    "blocks_of: together = min(MOST_TOGETHER, TASK // (x.shape[1] * size)) if size <= CHUNK else 1 → "
    "together = min(MOST_TOGETHER, TASK * (x.shape[1] * size)) if size <= CHUNK else 1": (
        "more statistics go together, which only the cache notices"
    ),
    "tasks_of: return (together, (blocks + together - 1) // together) → "
    "return (together, (blocks + together - 1) * together)": "a task past the end has nothing to do",
    "normalize_statistics: row_moments(zero, x[z, a, s:e], True, centre[:e - s], scale[:e - s], "
    "shift[:e - s]) → row_moments(zero, x[z, a, s:e], True, centre[:e - s], scale[:e - s], shift[:e + s])": (
        "more scratch than is used"
    ),
    "normalize_statistics: in_range &= constant(x[z, 0, s + r, 0], means[r], variances[r], eps) → "
    "in_range &= constant(x[z, 0, s + r, 0], means[0], variances[r], eps)": WIDER,
    "differentiate_block: again = np.empty((5, x.shape[3] // L)) → again = np.empty((6, x.shape[3] // L))": (
        "more scratch than is used"
    ),
    "backward_step: if (training or need_affine) and "
    "(not tile_sums(zero, number, layout, cotangent, x, mean, sums)): → "
    "if (training or need_affine) or not tile_sums(zero, number, layout, cotangent, x, mean, sums):": (
        "sums in float64 are right as well"
    ),
    "draw_and_expand_task: start, stop = (number * TASK, min((number + 1) * TASK, x.size)) → "
    "start, stop = (number / TASK, min((number + 1) * TASK, x.size))": (
        "a task does what those before it did once more"
    ),
    "forward_factors: if not (reliable(scale[j], limits) and (reliable(factor, limits) or weights[j] == 0)): "
    "→ if not (reliable(scale[j], limits) and (reliable(factor, limits) or weights[0] == 0)):": WIDER,
    "backward_factors: moments[j] = (moments[j] + times_rest(rounded - centre[j], plain[j])) * scale[j] → "
    "moments[j] = (moments[j] - times_rest(rounded - centre[j], plain[j])) * scale[j]": (
        "the rest of the rounded mean: 0 in float64, in float32 no more than the rounding of x itself"
    ),
    "tile_sums: k, end = (c // repeat, min(d, M) // repeat) → "
    "k, end = (c // repeat, min(d, M) * repeat)": "looks at sums of other channels too, which are in range",
}


@pytest.fixture(scope="module")
def outcomes(run_python):
    """By family: what was held against each mutant, empty where nothing was."""
    if not hasattr(signal, "setitimer"):
        pytest.skip("an edited loop may never end, and only POSIX timers end it")
    lines = run_python("import source_mutants; source_mutants.main()", NUMBA_DISABLE_JIT="1")
    found = {family: {} for family in FAMILIES}
    for family, name, complaint in map(json.loads, lines):
        found[family][name] = complaint
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_the_kernels_as_they_are_pass(outcomes, family):
    """Uncompiled, in small pieces: otherwise the rest of this file would prove nothing."""
    assert outcomes[family]["unchanged"] == ""


@pytest.mark.parametrize("family", FAMILIES)
def test_every_visible_edit_is_caught(outcomes, family):
    edits = {name: complaint for name, complaint in outcomes[family].items() if name != "unchanged"}
    assert len(edits) >= 12
    assert [name for name, complaint in edits.items() if not complaint and name not in INVISIBLE] == []


def test_those_called_invisible_exist_and_are_not_caught(outcomes):
    """An edit that the checks learn to see, or that the sources no longer hold, must leave the list."""
    everything = {name: complaint for family in FAMILIES for name, complaint in outcomes[family].items()}
    assert {name: everything.get(name, "no such edit") for name in INVISIBLE} == dict.fromkeys(INVISIBLE, "")
