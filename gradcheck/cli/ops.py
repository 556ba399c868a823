"""`python cli.py ops`: the registered operations, one in detail, and which kernel a call would run."""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from typing import Any

import click
import numpy as np

from gradcheck.cli import Group, arrays, placing, plugins
from tinygrad_bn.registry import REGISTRY, OpSpec, RegistryError

__all__ = ["ops", "setting"]

WIDTH = 110
NO_KERNEL = "no kernel has this name"


@click.group(cls=Group)
def ops() -> None:
    """The operations: list them, show one, explain which kernel runs."""


@ops.command("list")
@plugins.option
@click.pass_context
def list_operations(context: click.Context, /, plugin_paths: tuple[str, ...]) -> None:
    """One line per operation, and the plugins that did not load."""
    import tinygrad_bn  # noqa: F401 -- declares the built-in operations

    plugins.opened(context, plugin_paths)
    specs = list(REGISTRY)
    rows = [(spec.name, _how(spec), spec.documentation.partition("\n")[0]) for spec in specs]
    names, kernels = (max((len(row[column]) for row in rows), default=0) for column in (0, 1))
    for name, how, what in rows:
        start = f"{name:<{names}}  {how:<{kernels}}  "
        click.echo(start + textwrap.shorten(what, max(WIDTH - len(start), 2), placeholder=" …"))
    for plugin in REGISTRY.broken:
        click.echo(
            f"{plugin.namespace}::*  BROKEN: {plugin.distribution} {plugin.version}: {plugin.error}", err=True
        )


def _how(spec: OpSpec) -> str:
    """What computes an operation, in few words."""
    if not spec.fused:
        return "primitive"
    by_device: dict[str, dict[str, None]] = {}
    for kernel in spec.kernels:
        by_device.setdefault(kernel.device, {})[kernel.name] = None
    shown = (f"{device}: {', '.join(names)}" for device, names in by_device.items())
    return "; ".join(shown) or "definition only"


@ops.command()
@click.argument("name")
@plugins.option
@click.pass_context
def show(context: click.Context, /, name: str, plugin_paths: tuple[str, ...]) -> None:
    """Everything declared about one operation."""
    plugins.opened(context, plugin_paths)
    spec = _find(name)
    rows = {
        "operation": spec.name,
        "what": spec.documentation,
        "declared at": spec.origin,
        "inputs": ", ".join(
            n + ("" if i in spec.gradients else " (no gradient)") for i, n in enumerate(spec.inputs)
        ),
        "dtypes": ", ".join(spec.dtypes),
        "kernels": "\n".join(_kernel_line(kernel) for kernel in spec.kernels) or "none: NumPy and rules",
        "gradient terms": spec.terms or "",
        "state": ", ".join(spec.state),
        "random": "takes seed, stream and call number" if spec.rng else "",
        "properties": ", ".join(
            f"{key}" if value is True else f"{key}={value}" for key, value in spec.properties.items()
        ),
        "public function": spec.public,
        "samples": ", ".join(_samples(spec)),
    }
    for label, text in rows.items():
        if text:
            click.echo(f"{label:<17}" + text.replace("\n", "\n" + " " * 17))


@ops.command()
@click.argument("name")
@click.option(
    "--shape", default=None, metavar="4,3,5", help="Shape of the input; default: that of the first sample."
)
@click.option("--dtype", default="float32", show_default=True, type=click.Choice(("float32", "float64")))
@placing.option
@click.option("--kernel", default=None, help="As the argument kernel= of the function.")
@click.option(
    "--attribute",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="An attribute, such as num_groups=4. Repeatable.",
)
@plugins.option
@click.pass_context
def explain(
    context: click.Context,
    /,
    name: str,
    shape: str | None,
    dtype: str,
    device: str,
    kernel: str | None,
    settings: tuple[str, ...],
    plugin_paths: tuple[str, ...],
) -> None:
    """Which kernel a call of NAME would run, and why each other one would not."""
    placing.simulating(context, device)
    from tinygrad_bn import explain as explain_call

    plugins.opened(context, plugin_paths)
    spec = _find(name)
    if not spec.fused:
        click.echo(str(explain_call(spec.name, device=device)))
        return
    assert spec.samples is not None  # the registry refuses a differentiable operation without samples
    sample = next(iter(spec.samples(np.random.default_rng(0))))
    lengths = sample.inputs[0].shape if shape is None else arrays.lengths(shape, least=0)
    attributes = {**sample.attributes, **_follow(sample.attributes, lengths)}
    for key, value in map(setting, settings):
        if key not in attributes:
            known = ", ".join(attributes) or "none"
            raise click.UsageError(f"--attribute: {spec.name} has no {key!r}; its attributes are {known}")
        attributes[key] = value
    others = [None] * (len(spec.inputs) - 1)
    try:
        x = np.broadcast_to(np.zeros((), dtype), lengths)  # of any size without its memory
        _validate(spec, x, attributes)
        explained = explain_call(spec.name, x, *others, kernel=kernel, device=device, **attributes)
    except Exception as problem:  # the operation's own, about attributes that it was not made for
        shown = ", ".join(f"{key}={value!r}" for key, value in attributes.items())
        raise click.UsageError(
            f"{spec.name} cannot be called on shape {lengths} with {shown}: {problem}"
        ) from None
    click.echo(str(explained))


def _validate(spec: OpSpec, x: np.ndarray, attributes: dict[str, Any]) -> None:
    """Raise what the public function raises, which says more of its arguments than the operation behind it.

    It is called for a kernel that does not exist: everything else is looked at before, and nothing computed.
    """
    if not spec.public:
        return
    module, _, name = spec.public.partition(":")
    function = getattr(importlib.import_module(module), name)
    parameters = inspect.signature(function).parameters
    arguments = {key: value for key, value in attributes.items() if key in parameters}
    inference = "running_mean" in spec.inputs
    if "running_mean" in parameters:
        channels = x.shape[attributes["channel_axis"]] if inference else 0
        running = np.broadcast_to(np.ones((), np.float64), (channels,)) if inference else None
        arguments |= {"running_mean": running, "running_var": running}
    for switch in {"training", "use_input_stats"} & parameters.keys():
        arguments[switch] = not inference
    try:
        function(x, **arguments, kernel=NO_KERNEL)
    except ValueError as problem:
        if repr(NO_KERNEL) not in str(problem):
            raise


def _find(name: str) -> OpSpec:
    import tinygrad_bn  # noqa: F401 -- declares the built-in operations

    try:
        return REGISTRY.get(name)
    except RegistryError as problem:
        raise click.UsageError(str(problem)) from None


def _kernel_line(kernel: Any) -> str:
    serves = "" if kernel.plan is None else f", {kernel.plan.__name__.lower()} view"
    threshold = f", from {kernel.preferred_from:,} elements" if kernel.preferred_from else ""
    limited = ", up to a limit" if kernel.limit else ""
    what = f"{', '.join(kernel.dtypes)}{serves}{threshold}{limited}"
    return f"{kernel.device} {kernel.name}: {kernel.target} ({what})"


def _samples(spec: OpSpec) -> list[str]:
    found = []
    for kind, samples in (
        ("ordinary", spec.samples),
        ("hard", spec.hard_samples),
        ("error", spec.error_samples),
    ):
        if samples is not None:
            found.append(f"{len(list(samples(np.random.default_rng(0))))} {kind}")
    return found


def _follow(attributes: Any, lengths: tuple[int, ...]) -> dict[str, Any]:
    """The attributes that follow from the shape, unless they are given."""
    following = {"normalized_shape": lengths[-1:], "mask_shape": lengths}
    return {name: value for name, value in following.items() if name in attributes}


def setting(text: str) -> tuple[str, Any]:
    """The value of --attribute. Raises click.UsageError."""
    name, equals, value = text.partition("=")
    try:
        if equals:
            return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        pass
    raise click.UsageError(f"--attribute is {text!r}, wanted name=value with a number or a tuple")
