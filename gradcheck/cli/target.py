"""`python cli.py gradcheck --target FILE.py:function`: a function in a file of the user's."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import shlex
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from gradcheck.adapters import shared
from gradcheck.cli import arrays, program
from gradcheck.cli.loading import Unloadable, loaded
from gradcheck.cli.streams import aside
from gradcheck.sweep import Result, SampleCase

if TYPE_CHECKING:
    from gradcheck.report import Report

__all__ = ["DTYPES", "Target", "options"]

FRAMEWORKS = ("torch", "jax", "tinygrad_bn")
DTYPES = ("float64", "float32", "float16")
EXAMPLE = "my_norm.py:layer_norm"

OPTIONS = (
    click.option(
        "--target",
        "text",
        metavar="FILE.py:FUNCTION",
        help="Check this function instead; of NumPy arrays, FILE.py:FORWARD,BACKWARD.",
    ),
    click.option(
        "--shape", "shapes", multiple=True, metavar="4,3,5", help="Shape of an input of --target. Repeatable."
    ),
    click.option(
        "--backward", metavar="NAME", help="The backward pass of --target, where it is not named there."
    ),
    click.option(
        "--framework",
        type=click.Choice(("auto", *FRAMEWORKS, "numpy")),
        default="auto",
        help="Of --target; default: the one that its file imports.",
    ),
    click.option(
        "--order",
        type=click.IntRange(1, 2),
        default=1,
        help="2: of --target the gradient of the gradient too.",
    ),
    click.option(
        "--stress",
        type=click.IntRange(min=0),
        default=0,
        metavar="N",
        help="Run the backward pass of --target N times more, for rare races.",
    ),
)


def options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of a target to a command."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


@dataclass(frozen=True)
class Target:
    """The options that go with --target, as they were given.

    Raises:
        click.UsageError: options that contradict each other.
    """

    text: str
    shapes: tuple[str, ...]
    backward: str | None
    framework: str
    order: int
    stress: int
    dtypes: tuple[str, ...]
    input_path: str | None

    def __post_init__(self) -> None:
        if len(self.dtypes) > 1:
            raise click.UsageError(f"--dtype: a target has one, not {' and '.join(self.dtypes)}; call twice")
        if not self._path or not self._names:
            raise click.UsageError(
                f"--target is {self.text!r}, wanted a file and a function in it: {EXAMPLE}; "
                "of NumPy arrays the backward pass too: my_norm.py:forward,backward"
            )
        if len(self._names) > 2:
            raise click.UsageError(
                f"--target names {len(self._names)} functions; it checks one, or a forward and its backward"
            )
        if self.input_path is None and not self.shapes:
            raise click.UsageError(
                "--target needs the shape of each input: --shape 4,3,5 --shape 3 --shape 3, "
                "or --input FILE.npz with the inputs in their order"
            )
        if self.input_path is not None and (self.shapes or self.dtypes):
            raise click.UsageError(
                "--input brings the inputs; leave --shape and --dtype out, or leave --input out"
            )
        if self._is_pair and (self.framework not in ("auto", "numpy") or self.order != 1):
            raise click.UsageError(
                "--framework and --order are for a function that a framework differentiates; "
                "leave them out where a backward pass is named"
            )

    @property
    def _path(self) -> str:
        return self.text.rpartition(":")[0]

    @property
    def _names(self) -> list[str]:
        given = (*self.text.rpartition(":")[2].split(","), self.backward or "")
        return [name.strip() for name in given if name.strip()]

    @property
    def _is_pair(self) -> bool:
        return len(self._names) == 2

    def check(self, seed: int) -> Report:
        """Make the inputs, load the file, and check. Raises click.UsageError for what cannot be checked."""
        inputs = self._inputs(seed)
        try:
            with loaded(self._path) as module, aside():
                report = self._check(module, inputs, seed)
        except Unloadable as problem:
            if problem.trace:
                click.echo(problem.trace, err=True)
            raise click.UsageError(f"--target: {problem}") from None
        return dataclasses.replace(report, again=self._command(seed))

    def result(self, report: Report) -> Result:
        """The report as the result of a sweep of one."""
        words = tuple(shlex.split(self._command(report.seed)))
        selecting = words[words.index("gradcheck") + 1 : words.index("--seed")]
        (dtype,) = self.dtypes or DTYPES[:1]
        case = SampleCase(report.name, ", ".join(report.inputs), dtype, selected_by=selecting)
        return Result(
            case, report.seed, report.checks, (), (), report.seconds, program=program(),
            findings=report.findings, place=report.place, notes=report.notes,
        )  # fmt: skip

    def _check(self, module: types.ModuleType, inputs: list[np.ndarray], seed: int) -> Report:
        from gradcheck import harness

        first, *second = [self._function(module, name) for name in self._names]
        self._fit(first, inputs)
        options: dict[str, Any] = {"stress": self.stress, "seed": seed, "name": self._names[0]}
        try:
            if second:
                wanted = [index for index, array in enumerate(inputs) if array.dtype.kind == "f"]
                return harness.check_pair(first, second[0], inputs, differentiable=wanted, **options)
            tensors = _tensors(self._framework(module), inputs)
            return harness.check(first, tensors, order=self.order, **options)
        except (TypeError, ValueError) as problem:  # an argument's; what goes wrong in a check is a verdict
            raise click.UsageError(f"--target: {problem}") from None

    def _inputs(self, seed: int) -> list[np.ndarray]:
        if self.input_path is not None:
            return _from_file(self.input_path)
        rng = np.random.default_rng(seed)
        (dtype,) = self.dtypes or DTYPES[:1]
        lengths = [arrays.lengths(text, least=1) for text in self.shapes]
        return [rng.standard_normal(shape).astype(dtype) for shape in lengths]

    def _function(self, module: types.ModuleType, name: str) -> Callable[..., Any]:
        """The function of that name; of a class like torch.autograd.Function, its `apply`."""
        try:
            found = getattr(module, name)
        except AttributeError:
            known = [key for key, value in vars(module).items() if _is_own(value, module)]
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(known) or 'none'}"
            raise click.UsageError(f"--target: {self._path} has no function {name!r}; {hint}") from None
        if isinstance(found, type):
            try:
                shared.refuse_class(found)  # that of a layer, which may have an `apply` of another kind
            except TypeError:
                raise click.UsageError(
                    f"--target: {name} in {self._path} is a class, wanted a function; name an object of it: "
                    f"{name.lower()} = {name}(…)"
                ) from None
            found = getattr(found, "apply", None)  # of a Function, which is not known here by its type
        if not callable(found):
            raise click.UsageError(
                f"--target: {name} in {self._path} is not callable but of type {type(found).__name__}"
            )
        return found

    def _fit(self, function: Callable[..., Any], inputs: Sequence[Any]) -> None:
        """Refuse a number of inputs that the function does not take."""
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):  # some built-in functions have none
            return
        try:
            signature.bind(*inputs)
        except TypeError:
            option, way_out = "--shape", "give one --shape for each input, in their order"
            if self.input_path is not None:
                option, way_out = "--input", "save one array for each input, in their order"
            count = f"{len(inputs)} input{'s' if len(inputs) != 1 else ''}"
            raise click.UsageError(f"{option}: {count} for {self._names[0]}{signature}; {way_out}") from None

    def _framework(self, module: types.ModuleType) -> str:
        if self.framework not in ("auto", "numpy"):
            return self.framework
        backward = f"name the backward pass too: --target {self._path}:{self._names[0]},BACKWARD"
        if self.framework == "numpy":
            raise click.UsageError(f"--framework numpy: NumPy differentiates nothing; {backward}")
        imported = _frameworks_of(module)
        if len(imported) == 1:
            return imported[0]
        if imported:
            raise click.UsageError(
                f"--target: {self._path} imports {' and '.join(imported)}; say which with --framework"
            )
        raise click.UsageError(
            f"--target: {self._path} imports no framework; say --framework, or, for NumPy arrays, {backward}"
        )

    def _command(self, seed: int) -> str:
        words = ["--target", self.text]
        for option, value in (
            ("--backward", self.backward), *(("--shape", shape) for shape in self.shapes),
            *(("--dtype", dtype) for dtype in self.dtypes), ("--input", self.input_path),
            ("--framework", None if self.framework == "auto" else self.framework),
            ("--order", None if self.order == 1 else self.order), ("--stress", self.stress or None),
        ):  # fmt: skip
            words += [] if value is None else [option, str(value)]
        return f"{program()} gradcheck {shlex.join(words)} --seed {seed}"


def _from_file(path: str) -> list[np.ndarray]:
    """The arrays of a file, floating ones of one dtype, and integers that get no gradient."""
    try:
        batches = list(arrays.read(path, None))
    except arrays.Unusable as problem:
        raise click.UsageError(str(problem)) from None
    for batch in batches:
        if batch.values.dtype.kind not in "fiub":
            raise click.UsageError(
                f"--input: {batch.name} has dtype {batch.values.dtype}, wanted floats or integers"
            )
    dtypes = {batch.values.dtype.name for batch in batches if batch.values.dtype.kind == "f"}
    if len(dtypes) != 1:
        held = " and ".join(sorted(dtypes)) or "integers alone"
        raise click.UsageError(
            f"--input: {path} holds {held}, wanted one floating dtype to differentiate in; "
            "convert arrays with .astype('float64')"
        )
    return [batch.values for batch in batches]


def _is_own(value: Any, module: types.ModuleType) -> bool:
    return callable(value) and getattr(value, "__module__", None) == module.__name__


def _frameworks_of(module: types.ModuleType) -> list[str]:
    """The frameworks that a module has imported, or imported something from."""
    names = {
        value.__name__ if isinstance(value, types.ModuleType) else str(getattr(value, "__module__", ""))
        for value in vars(module).values()
    }
    packages = {name.partition(".")[0].removesuffix("lib") for name in names}  # jax's arrays are of jaxlib
    return [framework for framework in FRAMEWORKS if framework in packages]


def _tensors(framework: str, inputs: Sequence[np.ndarray]) -> list[Any]:
    """The inputs as tensors of a framework."""
    try:
        module = shared.import_framework(framework)
    except ImportError as error:
        raise click.UsageError(f"--framework: {error}") from None
    if framework == "torch":
        return [module.from_numpy(array) for array in inputs]
    if framework == "tinygrad_bn":
        return [module.tensor(array) for array in inputs]
    with module.enable_x64(True):  # else float64 would become float32
        return [module.numpy.asarray(array) for array in inputs]
