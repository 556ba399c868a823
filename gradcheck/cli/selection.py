"""What a command line asks to be checked: configurations, each with the user's array where there is one, and
registered operations, at their samples."""

from __future__ import annotations

import difflib
import functools
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import click

from gradcheck import axes, configurations
from gradcheck.axes import Configuration
from gradcheck.cli import arrays, plugins

if TYPE_CHECKING:
    from tinygrad_bn.registry import OpSpec

__all__ = ["Job", "NothingSelected", "Selection"]

Job = tuple[Configuration, arrays.Batch | None]


class NothingSelected(Exception):
    """No configuration passes all filters; the message says why."""


@dataclass(frozen=True)
class Selection:
    """The options that select; the empty tuple and None select everything.

    declared: the operations of the plugin files. device: the one whose kernels have corners.

    Raises:
        click.UsageError: options that contradict each other, or values that no configuration could have.
    """

    operations: tuple[str, ...]
    ranks: tuple[int, ...]
    dtypes: tuple[str, ...]
    modes: tuple[str, ...]
    layouts: tuple[str, ...]
    cases: tuple[str, ...]
    exhaustive: bool
    input_path: str | None
    array_name: str | None
    dataset: str | None
    declared: tuple[OpSpec, ...] = ()
    device: str = configurations.CPU

    def __post_init__(self) -> None:
        narrowing = [flag for flag, allowed, _ in self._filters() if flag != "--op"]
        narrowing += [flag for flag, given in (("--case", self.cases), ("--input", self.input_path)) if given]
        narrowing += [
            flag for flag, given in (("--data", self.dataset), ("--exhaustive", self.exhaustive)) if given
        ]
        for dtype in self.dtypes:
            if dtype not in axes.DTYPES:
                raise click.UsageError(
                    f"--dtype: {dtype} goes with --target; the configurations are {' or '.join(axes.DTYPES)}"
                )
        registered = self.registered
        if narrowing and registered:
            raise click.UsageError(
                f"{narrowing[0]} chooses among the configurations of the built-in operations; "
                f"{registered[0].name} is checked at its samples: leave {narrowing[0]} out, "
                "or choose other operations with --op"
            )
        if self.input_path is not None and self.dataset is not None:
            raise click.UsageError("--input and --data each say where the input comes from; pass one of them")
        if self.array_name is not None and self.input_path is None:
            raise click.UsageError("--array names an array of an .npz file; pass --input FILE.npz with it")
        if self.exhaustive and (self.cases or self._given):
            raise click.UsageError(
                "--exhaustive widens what is chosen, but --case, --input and --data choose; leave one out"
            )
        if not self._given:  # an array of the user's may have a higher rank
            self._check_ranks()

    @functools.cached_property
    def registered(self) -> tuple[OpSpec, ...]:
        """The operations to check at their samples: those named, or all that plugin files declare."""
        if not self.operations:
            return self.declared
        return tuple(_registered(name) for name in self.operations if name not in axes.OPERATIONS)

    @property
    def _configured(self) -> tuple[str, ...]:
        """The operations to check in configurations: those named, or all where no plugin file is given."""
        if not self.operations:
            return () if self.declared else axes.OPERATIONS
        return tuple(name for name in self.operations if name in axes.OPERATIONS)

    @property
    def _given(self) -> bool:
        return self.input_path is not None or self.dataset is not None

    def _check_ranks(self) -> None:
        names = self._configured
        existing = {rank for name in names for rank in axes.RANKS[name]}
        for rank in self.ranks:
            if rank not in existing:
                known = "; ".join(
                    f"{name}: {axes.RANKS[name][0]} to {axes.RANKS[name][-1]}" for name in names
                )
                raise click.UsageError(f"--rank: there is no rank {rank} to check; the ranks are {known}")

    def jobs(self) -> list[Job]:
        """The configurations that pass all filters, in order. Raises NothingSelected where none does."""
        if self.registered and not self._configured:
            return []
        candidates = list(self._candidates())
        jobs = [
            job
            for job in candidates
            if all(value(job[0]) in allowed for _, allowed, value in self._filters())
        ]
        if not jobs:
            self._refuse(candidates)
        return jobs

    def _filters(self) -> list[tuple[str, tuple[Any, ...], Callable[[Configuration], Any]]]:
        """Each filter that was given: its option, what it allows, and what it looks at."""
        filters = (
            ("--op", self._configured if self.operations else (), "operation"),
            ("--rank", self.ranks, "rank"),
            ("--dtype", self.dtypes, "dtype"),
            ("--mode", self.modes, "mode"),
            ("--layout", self.layouts, "layout"),
        )
        return [(flag, allowed, operator.attrgetter(name)) for flag, allowed, name in filters if allowed]

    def _refuse(self, candidates: list[Job]) -> NoReturn:
        """Say why nothing is left; an operation or rank that no array given can have is wrong usage."""
        held = {
            f"{batch.name} has shape {batch.values.shape}, {batch.values.dtype}"
            for _, batch in candidates
            if batch
        }
        for flag, allowed, value in self._filters():
            possible = dict.fromkeys(value(configuration) for configuration, _ in candidates)
            if held and not set(allowed) & set(possible):
                problem = (
                    f"{flag} {' or '.join(map(str, allowed))} does not fit: {', '.join(sorted(held))}; "
                    f"possible: {', '.join(map(str, possible))}"
                )
                raise click.UsageError(problem) if flag in ("--op", "--rank") else NothingSelected(problem)
        raise NothingSelected("no configuration has all of these settings")

    def _candidates(self) -> Iterator[Job]:
        batches = self._batches()
        if self.cases:
            for text in self.cases:
                yield from _case(text, batches)
        elif self._given:
            for batch in batches:
                for each in configurations.of_shape(batch.values.shape, batch.values.dtype.name):
                    yield each, batch
        else:
            chosen = configurations.exhaustive if self.exhaustive else configurations.covering
            for operation in self._configured:
                for each in chosen(operation, self.device):
                    yield each, None

    def _batches(self) -> list[arrays.Batch]:
        try:
            if self.input_path is not None:
                return list(arrays.from_file(self.input_path, self.array_name))
            return [] if self.dataset is None else list(arrays.from_dataset(self.dataset))
        except arrays.Unusable as problem:
            raise click.UsageError(str(problem)) from None


def _case(text: str, batches: list[arrays.Batch]) -> Iterator[Job]:
    """A configuration by its text form, on every array of its shape where it is to be given one."""
    try:
        configuration = Configuration.parse(text)
    except ValueError as problem:
        raise click.UsageError(f"--case: {problem}") from None
    if configuration.values != "given":
        if batches:
            raise click.UsageError(
                f"--case: {text!r} draws its own input; leave --input and --data out, or write values=given"
            )
        yield configuration, None
        return
    fitting = [batch for batch in batches if batch.values.shape == configuration.shape]
    if not fitting:
        there = ", ".join(f"{batch.name} has shape {batch.values.shape}" for batch in batches)
        raise click.UsageError(
            f"--case: values=given needs --input with an array of shape {configuration.shape}; "
            f"{there or 'none was given'}"
        )
    for batch in fitting:
        yield configuration, batch


def _registered(name: str) -> OpSpec:
    try:
        return plugins.registered(name)
    except click.UsageError:
        close = difflib.get_close_matches(name, axes.OPERATIONS, n=1)
        if "::" in name or not close:
            raise
        raise click.UsageError(f"--op: no operation {name!r}; did you mean {close[0]}?") from None
