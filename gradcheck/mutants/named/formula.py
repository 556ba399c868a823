"""Wrong formulas of the moment norm: what a derivation by hand gets wrong."""

from __future__ import annotations

import numpy as np

from gradcheck.mutants.mutant import wrong_backward
from gradcheck.mutants.named.pieces import PARAMETERS, STATISTICS, Gradients, expand, pieces
from gradcheck.mutants.operations import EPS, Saved

Array = np.ndarray


@wrong_backward("formula", "moment_norm")
def mean_path_missing(saved: Saved, cotangent: Array) -> Gradients:
    """The mean of g is not subtracted."""
    p = pieces(saved, cotangent)
    return p.rstd * (p.g - p.variance_path), p.dweight, p.dbias


@wrong_backward("formula", "moment_norm")
def variance_path_missing(saved: Saved, cotangent: Array) -> Gradients:
    """The variance is treated as a constant."""
    p = pieces(saved, cotangent)
    return p.rstd * (p.g - p.mean_path), p.dweight, p.dbias


@wrong_backward("formula", "moment_norm")
def mean_path_added(saved: Saved, cotangent: Array) -> Gradients:
    """The mean of g is added."""
    p = pieces(saved, cotangent)
    return p.rstd * (p.g + p.mean_path - p.variance_path), p.dweight, p.dbias


@wrong_backward("formula", "moment_norm")
def variance_path_added(saved: Saved, cotangent: Array) -> Gradients:
    """The variance path has the wrong sign."""
    p = pieces(saved, cotangent)
    return p.rstd * (p.g - p.mean_path + p.variance_path), p.dweight, p.dbias


@wrong_backward("formula", "moment_norm")
def unbiased_variance_path(saved: Saved, cotangent: Array) -> Gradients:
    """N − 1 in place of N in the variance path."""
    p = pieces(saved, cotangent)
    n = p.g.size / p.rstd.size
    return p.rstd * (p.g - p.mean_path - p.variance_path * n / max(n - 1, 1)), p.dweight, p.dbias


@wrong_backward("formula", "moment_norm")
def unbiased_mean_path(saved: Saved, cotangent: Array) -> Gradients:
    """N − 1 in place of N in the mean path."""
    p = pieces(saved, cotangent)
    n = p.g.size / p.rstd.size
    return p.rstd * (p.g - p.mean_path * n / max(n - 1, 1) - p.variance_path), p.dweight, p.dbias


@wrong_backward("formula", "moment_norm")
def unbiased_rstd(saved: Saved, cotangent: Array) -> Gradients:
    """Backward computes rstd anew, from the unbiased variance."""
    p = pieces(saved, cotangent)
    n = p.g.size / p.rstd.size
    variance = np.square(saved.x - saved.mean).mean(STATISTICS, keepdims=True) * n / max(n - 1, 1)
    dx = p.dx / (p.rstd * np.sqrt(variance + EPS))
    return dx, p.dweight, p.dbias


@wrong_backward("formula", "moment_norm")
def weight_not_applied(saved: Saved, cotangent: Array) -> Gradients:
    """dx is computed from ȳ in place of g = ȳ·γ."""
    p = pieces(saved._replace(weight=np.ones_like(saved.weight)), cotangent)
    return p.dx, p.dweight, p.dbias


@wrong_backward("formula", "moment_norm")
def weight_applied_after_the_sums(saved: Saved, cotangent: Array) -> Gradients:
    """dx is multiplied by γ in the end: only right where γ is constant over a slice."""
    p = pieces(saved._replace(weight=np.ones_like(saved.weight)), cotangent)
    return p.dx * expand(saved.weight), p.dweight, p.dbias


@wrong_backward("formula", "moment_norm")
def weight_applied_twice(saved: Saved, cotangent: Array) -> Gradients:
    """g = ȳ·γ²."""
    p = pieces(saved._replace(weight=saved.weight**2), cotangent)
    return p.dx, p.dweight, p.dbias


@wrong_backward("formula", "moment_norm")
def weight_divided(saved: Saved, cotangent: Array) -> Gradients:
    """g = ȳ/γ."""
    p = pieces(saved._replace(weight=1 / np.where(saved.weight == 0, 1, saved.weight)), cotangent)
    return p.dx, p.dweight, p.dbias


@wrong_backward("formula", "moment_norm")
def weight_missing_in_the_variance_path(saved: Saved, cotangent: Array) -> Gradients:
    """The variance path is computed from ȳ, the other terms from g."""
    p = pieces(saved, cotangent)
    path = p.x_hat * (cotangent * p.x_hat).mean(STATISTICS, keepdims=True)
    return p.rstd * (p.g - p.mean_path - path), p.dweight, p.dbias


@wrong_backward("formula", "moment_norm")
def rstd_missing(saved: Saved, cotangent: Array) -> Gradients:
    """dx is not divided by the deviation."""
    p = pieces(saved, cotangent)
    return p.g - p.mean_path - p.variance_path, p.dweight, p.dbias


@wrong_backward("formula", "moment_norm")
def rstd_squared(saved: Saved, cotangent: Array) -> Gradients:
    """dx is divided by the variance."""
    p = pieces(saved, cotangent)
    return p.dx * p.rstd, p.dweight, p.dbias


@wrong_backward("formula", "moment_norm")
def variance_path_halved(saved: Saved, cotangent: Array) -> Gradients:
    """The 2 of d(c²)/dc is forgotten."""
    p = pieces(saved, cotangent)
    return p.rstd * (p.g - p.mean_path - p.variance_path / 2), p.dweight, p.dbias


@wrong_backward("formula", "moment_norm")
def variance_path_not_normalized(saved: Saved, cotangent: Array) -> Gradients:
    """x − μ in place of x̂ in front of the variance path."""
    p = pieces(saved, cotangent)
    return p.rstd * (p.g - p.mean_path - p.variance_path / p.rstd), p.dweight, p.dbias


@wrong_backward("formula", "moment_norm")
def variance_path_with_uncentred_x(saved: Saved, cotangent: Array) -> Gradients:
    """x·rstd in place of x̂ in front of the variance path."""
    p = pieces(saved, cotangent)
    inner = (p.g * p.x_hat).mean(STATISTICS, keepdims=True)
    return p.rstd * (p.g - p.mean_path - saved.x * p.rstd * inner), p.dweight, p.dbias


@wrong_backward("formula", "moment_norm")
def product_of_means(saved: Saved, cotangent: Array) -> Gradients:
    """mean(g)·mean(|x̂|) in place of mean(g·x̂)."""
    p = pieces(saved, cotangent)
    inner = p.mean_path * np.abs(p.x_hat).mean(STATISTICS, keepdims=True)
    return p.rstd * (p.g - p.mean_path - p.x_hat * inner), p.dweight, p.dbias


@wrong_backward("formula", "moment_norm")
def mean_path_as_sum(saved: Saved, cotangent: Array) -> Gradients:
    """The sum of g is subtracted in place of its mean."""
    p = pieces(saved, cotangent)
    return p.rstd * (p.g - p.g.sum(STATISTICS, keepdims=True) - p.variance_path), p.dweight, p.dbias


@wrong_backward("formula", "moment_norm")
def mean_path_from_the_cotangent(saved: Saved, cotangent: Array) -> Gradients:
    """The mean path subtracts the mean of ȳ in place of that of g."""
    p = pieces(saved, cotangent)
    path = cotangent.mean(STATISTICS, keepdims=True)
    return p.rstd * (p.g - path - p.variance_path), p.dweight, p.dbias


@wrong_backward("formula", "moment_norm")
def dweight_with_uncentred_x(saved: Saved, cotangent: Array) -> Gradients:
    """dγ = Σ ȳ·x·rstd: the mean is not subtracted."""
    p = pieces(saved, cotangent)
    return p.dx, (cotangent * saved.x * p.rstd).sum(PARAMETERS), p.dbias


@wrong_backward("formula", "moment_norm")
def dweight_not_normalized(saved: Saved, cotangent: Array) -> Gradients:
    """dγ = Σ ȳ·(x − μ)."""
    p = pieces(saved, cotangent)
    return p.dx, (cotangent * p.x_hat / p.rstd).sum(PARAMETERS), p.dbias


@wrong_backward("formula", "moment_norm")
def dweight_times_weight(saved: Saved, cotangent: Array) -> Gradients:
    """dγ = Σ g·x̂: γ is applied to it as well."""
    p = pieces(saved, cotangent)
    return p.dx, (p.g * p.x_hat).sum(PARAMETERS), p.dbias


@wrong_backward("formula", "moment_norm")
def dweight_as_mean(saved: Saved, cotangent: Array) -> Gradients:
    """dγ is averaged over the elements that share it."""
    p = pieces(saved, cotangent)
    return p.dx, (cotangent * p.x_hat).mean(PARAMETERS), p.dbias


@wrong_backward("formula", "moment_norm")
def dbias_as_mean(saved: Saved, cotangent: Array) -> Gradients:
    """dβ is averaged over the batch."""
    p = pieces(saved, cotangent)
    return p.dx, p.dweight, p.dbias / (cotangent.shape[0] * cotangent.shape[1])


@wrong_backward("formula", "moment_norm")
def dbias_times_weight(saved: Saved, cotangent: Array) -> Gradients:
    """dβ = Σ g."""
    p = pieces(saved, cotangent)
    return p.dx, p.dweight, p.g.sum(PARAMETERS)


@wrong_backward("formula", "moment_norm")
def dweight_and_dbias_swapped(saved: Saved, cotangent: Array) -> Gradients:
    """The gradients of weight and bias are returned in the wrong order."""
    p = pieces(saved, cotangent)
    return p.dx, p.dbias, p.dweight
