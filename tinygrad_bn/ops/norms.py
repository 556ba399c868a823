"""The normalizations. Each is a definition of a few lines, its kernels, and the public function beside it.

All of them are y = (x − E[x]) / √(Var[x] + ε) · weight + bias, with the biased variance; they differ in the
axes over which the mean and the variance are taken. RMSNorm leaves out the mean. At inference, BatchNorm
and InstanceNorm take both from running statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..fused import operation
from ..kernels import views
from ..registry import BenchCase, Kernel
from ..tensor import CUDA_DTYPES, Tensor
from . import norm_arguments
from . import norm_samples as samples
from .checks import check_input
from .running import Running

__all__ = ["batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm"]

PARALLEL_FROM = 1 << 16
"""Elements below which starting threads costs more than it saves."""
DOUBLE = np.dtype(np.float64)
DOUBLE_EPS, SINGLE_EPS = float(np.finfo(np.float64).eps), float(np.finfo(np.float32).eps)


def _kernels(view: type, suffix: str = "") -> tuple[Kernel, ...]:
    """The sequential and the parallel twin that serve a view on the CPU."""
    module = f"tinygrad_bn.kernels.cpu.{view.__name__.lower()}"
    return (
        Kernel("sequential", f"{module}:sequential{suffix}", plan=view),
        Kernel("parallel", f"{module}:parallel{suffix}", plan=view, preferred_from=PARALLEL_FROM),
    )


def _streaming(view: type, module: str, suffix: str = "") -> Kernel:
    """The kernel that serves a view of any size on a CUDA device."""
    target = f"tinygrad_bn.kernels.cuda.{module}:streaming{suffix}"
    return Kernel("streaming", target, "cuda", view, CUDA_DTYPES)


def _resident(view: type, module: str) -> Kernel:
    """The one for statistics that fit the registers of a block."""
    module = f"tinygrad_bn.kernels.cuda.{module}"
    return Kernel("resident", f"{module}:resident", "cuda", view, CUDA_DTYPES, limit=f"{module}:too_long")


ROWS = (
    *_kernels(views.Rows),
    _streaming(views.Rows, "rows_streaming"),
    _resident(views.Rows, "rows"),
)
CHANNELS = (
    *_kernels(views.Split),
    *_kernels(views.Cols),
    _streaming(views.Split, "split"),
    _resident(views.Split, "split_resident"),
    _streaming(views.Cols, "cols"),
    _resident(views.Cols, "cols"),
)
CHANNELS_INFERENCE = (
    *_kernels(views.Split, "_inference"),
    *_kernels(views.Cols, "_inference"),
    _streaming(views.Split, "split", "_inference"),
    _streaming(views.Cols, "cols", "_inference"),
)


# The calls that a benchmark makes: all with weight and bias, whose shape follows from that of the input


def _trailing_call(shape: Any, keywords: Any) -> Any:
    """Over the last axis, unless `normalized_shape` says otherwise."""
    tail = keywords.get("normalized_shape", shape[-1:])
    return (shape, tail, tail), {"normalized_shape": tail, **keywords}


def _channels_call(shape: Any, keywords: Any) -> Any:
    affine = shape[keywords.get("channel_axis", 1) :][:1]  # none where the axis is: the function will say so
    return (shape, affine, affine), keywords


def _batch_call(shape: Any, keywords: Any) -> Any:
    shapes, keywords = _channels_call(shape, keywords)
    return shapes, {"running_mean": None, "running_var": None, "training": True, **keywords}


def _inference_call(shape: Any, keywords: Any) -> Any:
    (_, affine, _), keywords = _channels_call(shape, keywords)
    return (shape, affine, affine, affine, affine), {"training": False, **keywords}


# What the definitions share


def _standardize(xp: Any, x: Any, axes: tuple[int, ...], eps: float) -> tuple[Any, Any, Any]:
    """(x − mean) / √(variance + eps) over `axes`; and the mean and the biased variance, with length 1 along
    `axes`.
    """
    mean = xp.mean(x, axes, True)
    centred = x - mean
    variance = xp.mean(centred * centred, axes, True)
    return centred / xp.sqrt(variance + eps), mean, variance


def _affine(xp: Any, x: Any, weight: Any, bias: Any, shape: Sequence[int]) -> Any:
    """x · weight + bias, either of which may be absent, both seen in `shape`."""
    if weight is not None:
        x = x * xp.reshape(weight, shape)
    return x if bias is None else x + xp.reshape(bias, shape)


def _along_channels(x: Any, channel_axis: int) -> tuple[int, ...]:
    """The shape in which a value per channel broadcasts against x."""
    return tuple(n if axis == channel_axis % x.ndim else 1 for axis, n in enumerate(x.shape))


def _all_but(x: Any, *kept: int) -> tuple[int, ...]:
    return tuple(axis for axis in range(x.ndim) if axis not in [k % x.ndim for k in kept])


# LayerNorm and RMSNorm: the last axes of each sample


def _trailing(shapes: Any, attributes: Any, centred: bool) -> views.Rows:
    return views.layer_norm_view(shapes[0], len(attributes["normalized_shape"]), attributes["eps"], centred)


@operation(
    "norm::layer_norm",
    kernels=ROWS,
    plan=lambda shapes, attributes: _trailing(shapes, attributes, centred=True),
    keeps=((0, 1),),
    samples=samples.trailing,
    hard_samples=samples.trailing_hard,
    error_samples=samples.trailing_errors,
    terms="moment_norm",
    properties={"shift_invariant": True, "scale_invariant": True},
    bench_cases=(
        BenchCase((4096, 768)),
        BenchCase((512, 4096)),
        BenchCase((3001, 1003)),
        BenchCase((64, 128, 96)),
        BenchCase((8, 200704)),
    ),
    call_at=_trailing_call,
    public="tinygrad_bn.functional:layer_norm",
)
def _layer_norm(xp, input, weight, bias, *, normalized_shape, eps):
    """y = (x − E[x]) / √(Var[x] + ε) · weight + bias over the last axes, those of `normalized_shape`."""
    axes = tuple(range(-len(normalized_shape), 0))
    y, mean, variance = _standardize(xp, input, axes, eps)
    return _affine(xp, y, weight, bias, normalized_shape), (mean, variance)


def layer_norm(
    input: Any,
    normalized_shape: int | Sequence[int],
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    *,
    kernel: str | None = None,
) -> Tensor:
    """Layer normalization: each sample over its last axes.

    y = (x − E[x]) / √(Var[x] + eps) · weight + bias, mean and biased variance over the axes of
    `normalized_shape`.

    Args:
        input: [..., *normalized_shape], float32 or float64.
        normalized_shape: the shape of the last axes; an integer for one axis.
        weight, bias: [*normalized_shape], input's dtype; each may be None.
        eps: ≥ 0, added to the variance.
        kernel: "sequential", "parallel" or "definition", on a CUDA device "resident" or "streaming";
            default: by size.

    Raises:
        ValueError: the shapes do not fit, or eps is negative. TypeError: another dtype.

    Source: Ba, Kiros, Hinton, Layer Normalization, 2016, eq. 4.
    """
    check_input("layer_norm", input)
    arguments = ("layer_norm", eps, *norm_arguments.lengths(normalized_shape))
    return _layer_norm.remembered((input, weight, bias), norm_arguments.trailing, arguments, kernel)[0]


@operation(
    "norm::rms_norm",
    kernels=ROWS,
    plan=lambda shapes, attributes: _trailing(shapes, attributes, centred=False),
    keeps=((0, 1),),
    samples=samples.trailing,
    hard_samples=samples.trailing_hard,
    error_samples=samples.trailing_errors,
    terms="rms_norm",
    properties={"scale_invariant": True},
    bench_cases=(BenchCase((4096, 1024)),),
    call_at=_trailing_call,
    public="tinygrad_bn.functional:rms_norm",
)
def _rms_norm(xp, input, weight, bias, *, normalized_shape, eps):
    """y = x / √(E[x²] + ε) · weight + bias over the last axes, those of `normalized_shape`."""
    axes = tuple(range(-len(normalized_shape), 0))
    mean_square = xp.mean(input * input, axes, True)
    y = input / xp.sqrt(mean_square + eps)
    return _affine(xp, y, weight, bias, normalized_shape), (mean_square * 0, mean_square)


def rms_norm(
    input: Any,
    normalized_shape: int | Sequence[int],
    weight: Any = None,
    eps: float | None = None,
    *,
    bias: Any = None,
    kernel: str | None = None,
) -> Tensor:
    """Root mean square normalization: each sample divided by its root mean square over the last axes.

    y = x / √(E[x²] + eps) · weight + bias.

    Args:
        input: [..., *normalized_shape], float32 or float64.
        normalized_shape: the shape of the last axes; an integer for one axis.
        weight, bias: [*normalized_shape], input's dtype; each may be None. torch has no bias here.
        eps: ≥ 0, added to the mean square; None: the machine epsilon of input's dtype, as in torch.
        kernel: "sequential", "parallel" or "definition", on a CUDA device "resident" or "streaming";
            default: by size.

    Raises:
        ValueError: the shapes do not fit, or eps is negative. TypeError: another dtype.

    Source: Zhang, Sennrich, Root Mean Square Layer Normalization, 2019, eq. 4.
    """
    check_input("rms_norm", input)
    if eps is None:
        eps = DOUBLE_EPS if input.dtype == DOUBLE else SINGLE_EPS
    arguments = ("rms_norm", eps, *norm_arguments.lengths(normalized_shape))
    return _rms_norm.remembered((input, weight, bias), norm_arguments.trailing, arguments, kernel)[0]


# BatchNorm, InstanceNorm and GroupNorm: channels


@operation(
    "norm::batch_norm",
    kernels=CHANNELS,
    plan=lambda shapes, a: views.batch_norm_view(shapes[0], a["channel_axis"], a["eps"]),
    keeps=((0, 1),),
    samples=samples.batch,
    hard_samples=samples.batch_hard,
    error_samples=samples.batch_errors,
    terms="moment_norm",
    state=("running_mean", "running_var"),
    properties={"shift_invariant": True, "scale_invariant": True},
    bench_cases=(
        BenchCase((32, 64, 56, 56)),
        BenchCase((32, 512, 7, 7)),
        BenchCase((16, 96, 29, 31)),
        BenchCase((4096, 768)),
        BenchCase((32, 56, 56, 64), {"channel_axis": -1}),
        BenchCase((32, 7, 7, 512), {"channel_axis": -1}),
        BenchCase((16, 29, 31, 96), {"channel_axis": -1}),
    ),
    call_at=_batch_call,
    public="tinygrad_bn.functional:batch_norm",
)
def _batch_norm(xp, input, weight, bias, *, channel_axis, eps):
    """y = (x − E[x]) / √(Var[x] + ε) · weight + bias, mean and variance of each channel over all other
    axes.
    """
    y, mean, variance = _standardize(xp, input, _all_but(input, channel_axis), eps)
    return _affine(xp, y, weight, bias, _along_channels(input, channel_axis)), (mean, variance)


@operation(
    "norm::batch_norm_inference",
    kernels=CHANNELS_INFERENCE,
    plan=lambda shapes, a: views.batch_norm_view(shapes[0], a["channel_axis"], a["eps"]),
    keeps=((0, 1, 3, 4),),
    differentiable=(0, 1, 2),
    samples=samples.inference,
    hard_samples=samples.inference_hard,
    error_samples=samples.inference_errors,
    terms="inference_norm",
    bench_cases=(BenchCase((32, 64, 56, 56)),),
    call_at=_inference_call,
    public="tinygrad_bn.functional:batch_norm",
)
def _batch_norm_inference(xp, input, weight, bias, running_mean, running_var, *, channel_axis, eps):
    """y = (x − running_mean) / √(running_var + ε) · weight + bias, per channel."""
    shape = _along_channels(input, channel_axis)
    mean, variance = xp.reshape(running_mean, shape), xp.reshape(running_var, shape)
    y = (input - mean) / xp.sqrt(variance + eps)
    return _affine(xp, y, weight, bias, shape), (mean, variance)


def batch_norm(
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float | str | None = "default",
    eps: float = 1e-5,
    *,
    channel_axis: int = 1,
    convention: str = "torch",
    num_batches_tracked: Any = None,
    kernel: str | None = None,
) -> Tensor:
    """Batch normalization: each channel over the batch and all other axes.

    y = (x − E[x]) / √(Var[x] + eps) · weight + bias. In training, mean and biased variance are those of the
    batch, and the running statistics, where given, are updated in place after the operation succeeded; at
    inference they are the running statistics.

    Args:
        input: rank 2 to 5, the batch first, channels along `channel_axis`; float32 or float64.
        running_mean, running_var: [C], arrays or Tensors; both or neither; needed at inference.
        weight, bias: [C], input's dtype; each may be None.
        momentum, convention, num_batches_tracked: how the running statistics are updated:
            "torch": new = (1 − momentum) · old + momentum · batch, momentum 0.1 by default, unbiased
            variance; "paddle": new = momentum · old + (1 − momentum) · batch, momentum 0.9 by default,
            biased variance; momentum=None: the cumulative average, with num_batches_tracked the number of
            batches before this one.
        eps: ≥ 0, added to the variance.
        channel_axis: 1, or −1 for channels last.
        kernel: "sequential", "parallel" or "definition", on a CUDA device "resident" or "streaming";
            default: by size.

    Raises:
        ValueError: shapes, rank, momentum or eps do not fit; one value per channel in training. TypeError:
        another dtype.

    Source: Ioffe, Szegedy, Batch Normalization, 2015, algorithms 1 and 2.
    """
    name = "batch_norm"
    check_input(name, input)
    running = Running(name, running_mean, running_var, momentum, convention, num_batches_tracked)
    if not training:
        if not running.present:
            raise ValueError(
                f"{name}: running_mean and running_var are None, but inference needs them; or pass "
                "training=True"
            )
        inputs = (input, weight, bias, running_mean, running_var)
        given = (name, 2, channel_axis, eps)
        return _batch_norm_inference.remembered(inputs, norm_arguments.inference, given, kernel)[0]
    running.check_writable(input)
    arguments = (name, channel_axis, eps, running.shapes)
    output, aux = _batch_norm.remembered((input, weight, bias), norm_arguments.batch, arguments, kernel)
    if running.present:
        channels = output.shape[channel_axis]
        running.update(aux[0].reshape(channels), aux[1].reshape(channels), output.size // max(channels, 1))
    return output


@operation(
    "norm::instance_norm",
    kernels=CHANNELS,
    plan=lambda shapes, a: views.instance_norm_view(shapes[0], a["channel_axis"], a["eps"]),
    keeps=((0, 1),),
    samples=samples.instance,
    hard_samples=samples.instance_hard,
    error_samples=samples.instance_errors,
    terms="moment_norm",
    state=("running_mean", "running_var"),
    properties={"shift_invariant": True, "scale_invariant": True},
    bench_cases=(BenchCase((16, 64, 64, 64)), BenchCase((8, 48, 37, 41))),
    call_at=_channels_call,
    public="tinygrad_bn.functional:instance_norm",
)
def _instance_norm(xp, input, weight, bias, *, channel_axis, eps):
    """y = (x − E[x]) / √(Var[x] + ε) · weight + bias, mean and variance of each sample and channel over the
    spatial axes.
    """
    y, mean, variance = _standardize(xp, input, _all_but(input, 0, channel_axis), eps)
    return _affine(xp, y, weight, bias, _along_channels(input, channel_axis)), (mean, variance)


def instance_norm(
    input: Any,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float | str | None = "default",
    eps: float = 1e-5,
    *,
    channel_axis: int = 1,
    convention: str = "torch",
    num_batches_tracked: Any = None,
    kernel: str | None = None,
) -> Tensor:
    """Instance normalization: each channel of each sample over the spatial axes.

    y = (x − E[x]) / √(Var[x] + eps) · weight + bias. With `use_input_stats`, mean and biased variance are
    those of the input, and running statistics, where given, are updated with their average over the batch;
    without, they are the running statistics, as in `batch_norm`.

    Args:
        input: rank 3 to 5, the batch first, channels along `channel_axis`; float32 or float64.
        running_mean, running_var: [C], arrays or Tensors; both or neither; needed without use_input_stats.
        weight, bias: [C], input's dtype; each may be None.
        momentum, convention, num_batches_tracked: as in `batch_norm`.
        eps: ≥ 0, added to the variance.
        channel_axis: 1, or −1 for channels last.
        kernel: "sequential", "parallel" or "definition", on a CUDA device "resident" or "streaming";
            default: by size.

    Raises:
        ValueError: shapes, rank, momentum or eps do not fit; one spatial element with use_input_stats.
        TypeError: another dtype.

    Source: Ulyanov, Vedaldi, Lempitsky, Instance Normalization, 2016, eq. 2.
    """
    name = "instance_norm"
    check_input(name, input)
    running = Running(name, running_mean, running_var, momentum, convention, num_batches_tracked)
    if not use_input_stats:
        if not running.present:
            raise ValueError(
                f"{name}: running_mean and running_var are None, but use_input_stats=False needs them"
            )
        inputs = (input, weight, bias, running_mean, running_var)
        given = (name, 3, channel_axis, eps)
        return _batch_norm_inference.remembered(inputs, norm_arguments.inference, given, kernel)[0]
    running.check_writable(input)
    arguments = (name, channel_axis, eps, running.shapes)
    output, aux = _instance_norm.remembered((input, weight, bias), norm_arguments.instance, arguments, kernel)
    shape = output.shape
    if running.present and shape[0]:
        mean, variance = (
            statistic.reshape(shape[0], shape[channel_axis]).mean(axis=0) for statistic in aux[:2]
        )
        running.update(mean, variance, norm_arguments.spatial(shape, channel_axis))
    return output


@operation(
    "norm::group_norm",
    kernels=CHANNELS,
    plan=lambda shapes, a: views.group_norm_view(shapes[0], a["num_groups"], a["channel_axis"], a["eps"]),
    keeps=((0, 1),),
    samples=samples.group,
    hard_samples=samples.group_hard,
    error_samples=samples.group_errors,
    terms="moment_norm",
    properties={"shift_invariant": True, "scale_invariant": True},
    bench_cases=(
        BenchCase((16, 128, 28, 28), {"num_groups": 32}),
        BenchCase((8, 96, 45, 45), {"num_groups": 8}),
    ),
    call_at=_channels_call,
    public="tinygrad_bn.functional:group_norm",
)
def _group_norm(xp, input, weight, bias, *, num_groups, channel_axis, eps):
    """y = (x − E[x]) / √(Var[x] + ε) · weight + bias, mean and variance of each sample over a group of
    neighbouring channels.
    """
    axis = channel_axis % input.ndim
    channels = input.shape[axis]
    grouped = (*input.shape[:axis], num_groups, channels // num_groups, *input.shape[axis + 1 :])
    x = xp.reshape(input, grouped)
    y, mean, variance = _standardize(xp, x, _all_but(x, 0, axis), eps)
    y = xp.reshape(y, input.shape)
    return _affine(xp, y, weight, bias, _along_channels(input, channel_axis)), (mean, variance)


def group_norm(
    input: Any,
    num_groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    *,
    channel_axis: int = 1,
    kernel: str | None = None,
) -> Tensor:
    """Group normalization: each group of neighbouring channels of each sample, over the group and the
    spatial axes.

    y = (x − E[x]) / √(Var[x] + eps) · weight + bias, mean and biased variance over C / num_groups channels
    and all spatial axes. One group is LayerNorm over the sample, one channel per group InstanceNorm, each
    up to the shape of the affine parameters.

    Args:
        input: rank 2 to 5, the batch first, channels along `channel_axis`; float32 or float64.
        num_groups: divides the number of channels.
        weight, bias: [C], input's dtype; each may be None.
        eps: ≥ 0, added to the variance.
        channel_axis: 1, or −1 for channels last.
        kernel: "sequential", "parallel" or "definition", on a CUDA device "resident" or "streaming";
            default: by size.

    Raises:
        ValueError: shapes, rank or eps do not fit, the groups do not divide the channels, or there is one
        value per group in all. TypeError: another dtype.

    Source: Wu, He, Group Normalization, 2018, eq. 7.
    """
    check_input("group_norm", input)
    arguments = ("group_norm", num_groups, channel_axis, eps)
    return _group_norm.remembered((input, weight, bias), norm_arguments.group, arguments, kernel)[0]
