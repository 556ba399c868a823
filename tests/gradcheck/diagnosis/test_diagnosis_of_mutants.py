"""The sentence is right for every mutant of the kind "formula", whoever wrote it."""

from __future__ import annotations

import numpy as np
import pytest

from gradcheck.diagnosis.diagnose import diagnose
from gradcheck.diagnosis.recognise import recognise
from gradcheck.mutants.cases import CASES
from gradcheck.mutants.collection import OUTSIDER
from gradcheck.mutants.mutant import Mutant
from gradcheck.mutants.named import NAMED

REFUSED = "no combination of the known terms"
# What the sentences about the wrong gradients say, by mutant: each must be in one of them.
SENTENCES: dict[str, tuple[str, ...]] = {
    "mean_path_missing": ("the mean path is missing",),
    "variance_path_missing": ("the variance path is missing",),
    "mean_path_added": ("the mean path is of the wrong sign",),
    "variance_path_added": ("the variance path is of the wrong sign",),
    "unbiased_variance_path": ("the variance path is divided by N − 1 = 17 instead of N = 18",),
    "unbiased_mean_path": ("the mean path is divided by N − 1 = 17 instead of N = 18",),
    "unbiased_rstd": ("the variance is divided by N − 1 = 17, but by N = 18 in the forward pass: in rstd",),
    "weight_not_applied": ("weight is not applied: multiply the cotangent by weight first",),
    "weight_applied_after_the_sums": ("weight is not applied before the sums",),
    "weight_applied_twice": ("weight is applied twice",),
    "weight_divided": ("the cotangent is divided by weight, not multiplied",),
    "weight_missing_in_the_variance_path": ("weight is not applied in the variance path",),
    "rstd_missing": ("rstd is missing",),
    "rstd_squared": ("rstd is applied twice",),
    "variance_path_halved": ("the variance path is halved",),
    "variance_path_not_normalized": ("x̂ in the variance path is the centred x, not multiplied by rstd",),
    "variance_path_with_uncentred_x": ("x̂ in the variance path is x times rstd, not centred",),
    "product_of_means": (REFUSED,),
    "mean_path_as_sum": ("the mean path is a sum, not a mean: divide by N = 18",),
    "mean_path_from_the_cotangent": ("weight is not applied in the mean path",),
    "dweight_with_uncentred_x": ("x̂ is not centred",),
    "dweight_not_normalized": ("x̂ is not multiplied by rstd",),
    "dweight_times_weight": ("it is multiplied by weight",),
    "dweight_as_mean": ("the gradient is a mean, not a sum: do not divide by 12",),
    "dbias_as_mean": ("the gradient is divided by 4, the length of axes 0 and 1",),
    "dbias_times_weight": ("it is multiplied by weight",),
    "dweight_and_dbias_swapped": (
        "the gradient of bias is in its place",
        "the gradient of weight is in its place",
    ),
    "rms_mean_subtracted": ("the mean path does not belong here",),
    "rms_constant_rstd": ("the rms path is missing",),
    "rms_power_of_rstd": ("x̂ in the rms path is the centred x, not multiplied by rstd",),
    "rms_dweight_from_the_output": ("it is multiplied by weight",),
    "rms_weight_after_the_sums": ("weight is not applied before the sums",),
    "inference_weight_forgotten": ("weight is not applied",),
    "inference_divided_by_the_variance": ("rstd is applied twice",),
    "inference_dweight_uncentred": ("x̂ is not centred",),
    "dropout_scale_forgotten": ("the survivors are not scaled",),
    "dropout_scaled_twice": ("the survivors are scaled twice",),
    "dropout_scaled_by_p": ("the survivors are multiplied by 1/p = 4 instead of 1.33333",),
    "dropout_mask_inverted": ("the complement of the mask is applied",),
    "gradient_times_momentum": ("the whole gradient is multiplied by 0.1",),
    "weight_in_front_of_the_means": ("weight is not applied before the sums",),
    "layer_norm_backward_for_rms": ("the mean path does not belong here",),
    "weight_stored_as_an_offset_from_one": ("1 + weight is in the place of weight",),
    "weight_gradient_from_the_scaled_cotangent": ("it is multiplied by weight",),
    "scale_taken_as_positive": ("the absolute value of weight is in its place",),
    "x_hat_from_the_output_without_the_bias": (
        "the output over weight, with bias not subtracted",
        "bias is not subtracted where x̂ is made of the output",
    ),
    "momentum_passed_for_epsilon": ("ε differs: 0.1 here, 1e-05 in the forward pass",),
    "rstd_of_the_running_update": ("the variance is divided by N − 1 = 8, but by N = 9 in the forward pass",),
    "scale_of_the_realised_rate": ("the scale is that of the share that was in fact kept",),
}  # fmt: skip
MUTANTS = [m for m in (*NAMED, *OUTSIDER) if m.kind == "formula" and not m.invisible]


def test_no_mutant_is_left_out() -> None:
    assert {m.name for m in MUTANTS} == set(SENTENCES)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_sentence(mutant: Mutant) -> None:
    said = sentences(mutant)
    assert said, "no gradient differs"
    for wanted in SENTENCES[mutant.name]:
        assert any(wanted in sentence for sentence in said), said


def sentences(mutant: Mutant) -> list[str]:
    operation, rng = mutant.operation, np.random.default_rng(0)
    inputs = CASES[operation.name][0].inputs(operation, rng)
    if mutant.name == "scale_taken_as_positive":
        inputs = (inputs[0], inputs[1] * [[1.0], [-1.0]], *inputs[2:])  # as it is where all are positive
    forward, backward = mutant.make()
    output, saved = forward(*(array.copy() for array in inputs))
    _, right_saved = operation.forward(*(array.copy() for array in inputs))
    cotangent = rng.normal(size=output.shape)
    recognised = recognise(inputs, output, lambda family: False)
    assert recognised is not None
    wrong, right = backward(saved, cotangent), operation.backward(right_saved, cotangent)
    said = []
    for position, (mine, its) in enumerate(zip(wrong, right, strict=True)):
        if mine is not None and its is not None and not np.allclose(mine, its, rtol=1e-9, atol=1e-12):
            found = diagnose(recognised.family, position, inputs, output, cotangent, mine)
            assert found is not None
            said.append(found.sentence)
    return said
