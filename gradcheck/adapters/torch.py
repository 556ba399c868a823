"""Functions of torch tensors, `autograd.Function`s and modules as pairs that can be checked.

Every call of a pass that draws starts from the state that torch's CPU generator had when the check began,
the backward pass from the one that its own forward pass left; between calls the generator is the caller's.
Whether a pass draws is seen at its first call: to look each time would cost more than many passes do. Tensors
lie in memory as the arrays do, expanded ones with stride 0 too. Only negative strides, which torch does not
have, are copied, and so are the inputs of a function that draws: torch deals out random numbers in the order
of memory, so that another layout would be another mask.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from gradcheck.adapters import Pair, shared
from gradcheck.contract.randomness import GlobalGenerator

torch = shared.import_framework("torch")

__all__ = ["pair", "recognises"]

FUNCTION = torch.autograd.Function
GENERATOR = torch.default_generator
UNTOUCHED = contextlib.nullcontext()
ONCE = torch.autograd.function.once_differentiable(print).__code__  # of whatever the decorator returns


def recognises(fn: Callable[..., Any], inputs: Sequence[Any]) -> bool:
    """Whether these inputs, or else this function, are torch's."""
    return shared.recognises("torch", fn, inputs)


def pair(
    fn: Callable[..., Any], inputs: Sequence[Any], differentiable: Collection[int] | None = None
) -> Pair:
    """A torch function as a Pair.

    Args:
        fn: a function, an autograd.Function or its `apply`, or a module, whose parameters are constants here.
        inputs: tensors; floating NumPy arrays become tensors too, everything else is passed on as it is.
        differentiable: positions of the inputs to check; by default those that require a gradient, and
            where none does, all that are floating.

    Raises:
        TypeError: inputs of several frameworks; one that NumPy cannot hold, as it is sparse, on the device
            meta or bfloat16; or none that is floating.
    """
    shared.require_one_framework(inputs)
    arrays = shared.input_arrays(fn, inputs, _as_array)
    if differentiable is None:
        marked = [i for i, value in enumerate(inputs) if torch.is_tensor(value) and value.requires_grad]
        differentiable = marked or None
    return _Adapted(fn, inputs, arrays, shared.wanted_positions(fn, arrays, differentiable)).pair()


class _Adapted:
    """A torch function on arrays, those at the positions `wanted` with a gradient."""

    def __init__(
        self,
        fn: Callable[..., Any],
        inputs: Sequence[Any],
        arrays: list[np.ndarray | None],
        wanted: tuple[int, ...],
    ) -> None:
        self.fn = fn
        self.call, self.name = _callable(fn)
        self.described = shared.described(fn)
        self.inputs, self.arrays, self.wanted = inputs, arrays, wanted
        self.are_tensors = [torch.is_tensor(given) for given in inputs]
        self.start = GENERATOR.get_state()
        self.draws: dict[str, bool] = {}  # by pass, once it has been called

    def pair(self) -> Pair:
        """Both passes, and what else the graph of a first call allows."""
        functions = self.explore()
        jvp, remark = self.own_jvp(functions)
        remarks = [remark] if remark else []
        once = [each.__name__ for each in functions if getattr(each.backward, "__code__", None) is ONCE]
        if once:
            remarks.append(f"second order: not possible, {once[0]}.backward is once_differentiable")
        return Pair(
            forward=functools.update_wrapper(functools.partial(self.forward), self.described, updated=()),
            backward=self.backward,
            inputs=self.arrays,
            name=self.name,
            differentiable=self.wanted,
            jvp=jvp,
            second=None if once else self.second,
            plain=self.plain,
            some=self.some,
            remarks=tuple(remarks),
        )

    def forward(self, *arrays: np.ndarray | None) -> tuple[np.ndarray, Any]:
        recording = UNTOUCHED if torch.is_grad_enabled() else torch.enable_grad()
        with self.drawing_from(self.start, "forward"), recording:
            tensors = self.tensors(arrays)
            leaves = [tensors[position].requires_grad_() for position in self.wanted]
            output = self.output_of(tensors)
            drawn = GENERATOR.get_state() if self.may_draw("forward") else self.start
        return output.numpy(force=True), (output, leaves, drawn)

    def backward(self, saved: Any, cotangent: np.ndarray) -> tuple[np.ndarray | None, ...]:
        output, leaves, drawn = saved
        if not output.requires_grad:
            raise TypeError(
                "the output requires no gradient: the function left the graph (detach(), .data, no_grad() or "
                "NumPy on the way), or uses none of the inputs"
            )
        with self.drawing_from(drawn, "backward"):
            # What the output does not depend on has gradient zero; the numbers tell whether that is right.
            gradients = torch.autograd.grad(
                output, leaves, _as_tensor(cotangent, output), retain_graph=True, materialize_grads=True
            )
        found: list[np.ndarray | None] = [None] * len(self.arrays)
        storages: set[int] = set()
        for position, gradient in zip(self.wanted, gradients, strict=True):
            # Two gradients may be one tensor, as of a + b: torch copies it when it accumulates into a .grad.
            dense = gradient.to_dense()  # itself, unless it is sparse, as of an embedding
            storage = dense.untyped_storage().data_ptr()
            found[position] = (dense.clone() if storage in storages else dense).numpy(force=True)
            storages.add(storage)
        return tuple(found)

    def plain(self, *arrays: np.ndarray | None) -> np.ndarray:
        """The output, with nothing recorded."""
        with self.drawing_from(self.start, "forward"), torch.no_grad():
            return self.output_of(self.tensors(arrays)).numpy(force=True)

    def some(self, positions: tuple[int, ...]) -> Pair:
        """The Pair of which only these inputs require a gradient."""
        fewer = _Adapted(self.fn, self.inputs, self.arrays, positions)
        fewer.start, fewer.draws = self.start, self.draws
        return Pair(fewer.forward, fewer.backward, self.arrays, self.name, positions)

    def jvp(self, arrays: Sequence[np.ndarray | None], tangents: Sequence[np.ndarray | None]) -> np.ndarray:
        """The derivative of the output along the tangents, by the functions' own jvp."""
        forward_ad = torch.autograd.forward_ad
        with self.drawing_from(self.start, "jvp"), forward_ad.dual_level():
            tensors = self.tensors(arrays)
            for position, tangent in enumerate(tangents):
                if tangent is not None:
                    primal = tensors[position]
                    tensors[position] = forward_ad.make_dual(primal, _as_tensor(tangent, primal))
            primal, along = forward_ad.unpack_dual(self.output_of(tensors))
            return (torch.zeros_like(primal) if along is None else along).numpy(force=True)

    def second(self, cotangent: np.ndarray) -> Pair:
        """The Pair of (*inputs, cotangent) ↦ the gradients, joined into one vector."""

        def gradients(*tensors: Any) -> Any:
            *primals, direction = tensors
            wanted = [primals[position] for position in self.wanted]
            found = torch.autograd.grad(
                self.output_of(primals), wanted, direction, create_graph=True, materialize_grads=True
            )
            return torch.cat([gradient.reshape(-1) for gradient in found])

        arrays, inputs = [*self.arrays, cotangent], [*self.inputs, cotangent]
        joined = _Adapted(gradients, inputs, arrays, (*self.wanted, len(self.arrays)))
        return Pair(joined.forward, joined.backward, arrays, f"gradient of {self.name}", joined.wanted)

    def tensors(self, arrays: Sequence[np.ndarray | None]) -> list[Any]:
        """The arguments of a call: tensors where the caller gave them, or a floating array."""
        tensors, draws = [], self.may_draw("forward")
        for array, given, is_tensor in zip(arrays, self.inputs, self.are_tensors, strict=True):
            if array is None:
                tensors.append(given)
            elif is_tensor or array.dtype.kind == "f":
                tensors.append(_as_tensor(np.asarray(array, order="C") if draws else array, given))
            else:
                tensors.append(array)
        return tensors

    def output_of(self, tensors: Sequence[Any]) -> Any:
        return shared.one_output(self.call(*tensors), torch.Tensor, "torch.Tensor")

    def may_draw(self, role: str) -> bool:
        return self.draws.get(role, True)

    def drawing_from(self, state: Any, role: str) -> AbstractContextManager[None]:
        """Let a pass that draws start from a state of torch's generator, which is put back as it was."""
        return self._drawing_from(state, role) if self.may_draw(role) else UNTOUCHED

    @contextlib.contextmanager
    def _drawing_from(self, state: Any, role: str) -> Iterator[None]:
        kept = GENERATOR.get_state()
        GENERATOR.set_state(state)
        try:
            yield
            self.draws.setdefault(role, not torch.equal(GENERATOR.get_state(), state))
        finally:
            GENERATOR.set_state(kept)

    def explore(self) -> list[Any]:
        """Call the function once; return the autograd.Functions on its way."""
        arrays = [None if array is None else array.copy() for array in self.arrays]
        try:
            with warnings.catch_warnings():  # of float(tensor): the check says more
                warnings.filterwarnings("ignore", "Converting a tensor with requires_grad=True to a scalar")
                (_, (output, *_)), _ = GlobalGenerator().call("trial", None, lambda: self.forward(*arrays))
        except Exception:  # the check will call it too, and report what it raises
            return []
        nodes, found = [output.grad_fn], {}
        while nodes:
            node = nodes.pop()
            if node is not None and node not in found:
                found[node] = getattr(node, "_forward_cls", None)
                nodes += [parent for parent, _ in node.next_functions]
        return [each for each in dict.fromkeys(found.values()) if each is not None]

    def own_jvp(self, functions: Sequence[Any]) -> tuple[Callable[..., Any] | None, str]:
        """`jvp` where all functions define theirs, which owes nothing to the backward pass; or why not."""
        without = [each.__name__ for each in functions if each.jvp is FUNCTION.jvp]
        if not functions or without:
            return None, f"JVP against VJP: not made, {without[0] if without else 'the function'} has no jvp"
        zeros = [np.zeros_like(a) if i in self.wanted else None for i, a in enumerate(self.arrays)]
        try:
            with warnings.catch_warnings():  # torch's own, the first time that it loads forward mode
                warnings.simplefilter("ignore", DeprecationWarning)
                self.jvp(self.arrays, zeros)
        except NotImplementedError as error:
            return None, f"JVP against VJP: not made, torch says: {str(error).splitlines()[0]}"
        except Exception:  # a jvp that is there and broken is the check's to report
            pass
        return self.jvp, ""


def _as_array(value: Any) -> np.ndarray | None:
    if not torch.is_tensor(value):
        return None
    if value.layout != torch.strided:
        raise TypeError(
            f"is a sparse tensor ({value.layout}); give its to_dense(), or where it is a constant, write it "
            "into the function: lambda *inputs: fn(sparse, *inputs)"
        )
    if value.is_meta:
        raise TypeError("is on the device meta, where tensors have no values; create it on the CPU")
    if value.dtype == torch.bfloat16:
        raise TypeError("is bfloat16, which NumPy does not have; check the same function at float32")
    return value.numpy(force=True)


def _as_tensor(array: np.ndarray, like: Any) -> Any:
    """A tensor over the array's memory, on the device of `like`."""
    if array.flags.carray or (array.flags.writeable and min(array.strides, default=0) >= 0):
        tensor = torch.from_numpy(array)
    else:
        # Broadcast arrays are read-only, which torch does not have either: expand, as its users do.
        compact = array[tuple(slice(None) if stride else slice(1) for stride in array.strides)]
        tensor = torch.from_numpy(compact.copy()).expand(array.shape)
    return tensor if getattr(like, "is_cpu", True) else tensor.to(like.device)


def _callable(fn: Any) -> tuple[Callable[..., Any], str]:
    """What to call, and its name in a report."""
    owner = getattr(fn, "__self__", fn)  # of MyFunction.apply
    if isinstance(owner, type) and issubclass(owner, FUNCTION):
        function: Any = owner
        return function.apply, owner.__name__
    name = getattr(fn, "__name__", type(fn).__name__)
    return (functools.partial(_call_module, fn) if isinstance(fn, torch.nn.Module) else fn), name


def _call_module(module: Any, *inputs: Any) -> Any:
    """The module, whose own statistics stay as they are, with copies of its state in the inputs' dtype."""
    dtype = next(value.dtype for value in inputs if torch.is_tensor(value) and value.is_floating_point())
    values = {
        name: value.detach().to(dtype if value.is_floating_point() else value.dtype, copy=True)
        for name, value in (*module.named_parameters(), *module.named_buffers())
    }
    return torch.func.functional_call(module, values, inputs)
