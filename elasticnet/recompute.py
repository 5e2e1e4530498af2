"""Blocks whose activations the backward pass computes again, from the state of the first run.

`torch.utils.checkpoint` keeps the inputs of a block instead of its activations, and runs the block
a second time in the backward pass. It gives both runs the same numbers of torch's own generators,
and nothing else. The second run would begin with the buffers that the first one has changed, so
that its gradients would be wrong, and it would change them once more. Here the second run begins
with what the first one began with, and afterwards the later state is put back. This holds for:

- the buffers of the block, and tensors, numbers, lists, tuples, dicts and sets that its modules
  hold as attributes, nested ones too: spectral norm's vectors, running statistics, counters, the
  hidden state of a recurrent layer, the training mode;
- the generators of Python's `random` and of NumPy, and generators that modules hold as attributes;
- lists, dicts, sets and generators among the inputs, such as the context of `call_block`.

What is kept elsewhere is not seen: in a closure, or in an object of another class. Parameters that
change between the two runs are an error, as they mostly are without recomputation.

A graph of torch.compile needs none of this. It computes again from the values that entered it, and
changes each buffer once. An older torch may change them twice; there a block with buffers runs
outside the graph.
"""

from __future__ import annotations

import copy
import random
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import (
    checkpoint,  # pyright: ignore[reportUnknownVariableType]
    set_checkpoint_early_stop,
)

from elasticnet._modules.compare import same_bits
from elasticnet._net.nests import tensors_in

Types = tuple[type[Any], ...]

IMMUTABLE_TYPES: Types = (bool, int, float, complex, str, bytes, tuple, type(None))
SEQUENCE_TYPES: Types = (list, deque)
MAPPING_TYPES: Types = (dict,)
CONTAINER_TYPES: Types = (*SEQUENCE_TYPES, *MAPPING_TYPES, set)
GENERATOR_TYPES: Types = (
    torch.Generator,
    random.Random,
    np.random.Generator,
    np.random.RandomState,
)

# In torch 2.6 the backward graph repeats the writes of a recomputed block to its buffers, in torch
# 2.15 it does not. The versions between were not tried.
TORCH_VERSION = tuple(int(number) for number in torch.__version__.split(".")[:2])
GRAPHS_REPEAT_WRITES = TORCH_VERSION < (2, 15)

# What every module holds: hooks, parameters, children. Of these only the mode is state of a run.
MODULE_INTERNALS = frozenset(vars(nn.Module())) - {"training"}


def recomputed(
    function: Callable[..., Any], module: nn.Module, option: str = "checkpoint_blocks"
) -> Callable[..., Any]:
    """Return a function that keeps no activations: the backward pass computes them again.

    Args:
        function: What to run. The backward pass calls it again with the same inputs.
        module: The module whose state `function` may change, submodules included.
        option: The option that asked for it, which messages name.

    Returns:
        A function of the same inputs. Its output, its gradients and the state that it leaves are
        those of `function`.

    Example:
        `output = recomputed(block, module=block)(features)`
    """

    def run(*inputs: Any) -> Any:
        if torch.compiler.is_compiling() and GRAPHS_REPEAT_WRITES and _has_buffers(module):
            run_outside_the_graph = _not_compiled(_run_and_recompute)
            return run_outside_the_graph(function, module, option, inputs)
        return _run_and_recompute(function, module, option, inputs)

    return run


def _run_and_recompute(
    function: Callable[..., Any], module: nn.Module, option: str, inputs: Sequence[Any]
) -> Any:
    """Run a function by `checkpoint`, which calls it again in the backward pass."""
    start: _Start | None = None

    def run_first_or_again(*inputs: Any) -> Any:
        nonlocal start
        # Asked in here, because the compiler calls what it cannot trace as ordinary Python.
        if torch.compiler.is_compiling():
            return function(*inputs)
        if start is None:
            start = _Start(module, option, inputs)
            output = function(*inputs)
            start.end_first_run()
            return output
        with start.restored(inputs) as first_inputs:
            return function(*first_inputs)

    if _has_late_noise(module):
        with set_checkpoint_early_stop(False):
            return checkpoint(run_first_or_again, *inputs, use_reentrant=False)
    return checkpoint(run_first_or_again, *inputs, use_reentrant=False)


def _has_late_noise(module: nn.Module) -> bool:
    """Return whether a module draws noise after autograd has kept the tensor for it.

    `checkpoint` ends a second run as soon as autograd has kept all that it needs, which is before
    RReLU draws its noise: the gradients would be NaN.
    """
    return any(isinstance(each, nn.RReLU) for each in module.modules())


def _not_compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function as one that the compiler calls as ordinary Python."""
    return torch.compiler.disable(function)  # pyright: ignore[reportUnknownMemberType]


def _has_buffers(module: nn.Module) -> bool:
    return next(module.buffers(), None) is not None


class _Start:
    """What the first run of a block began with."""

    def __init__(self, module: nn.Module, option: str, inputs: Sequence[Any]) -> None:
        copies: dict[int, Any] = {}
        self.block = module
        self.option = option
        self.parameters: dict[str, tuple[Tensor, int | None]] = {}  # with their versions
        self.modules = [_ModuleStart(each, copies) for each in module.modules()]
        # By position. Inputs that are tensors themselves are kept and checked by `checkpoint`.
        self.inputs = {
            position: _copied_input(value, copies)
            for position, value in enumerate(inputs)
            if not isinstance(value, Tensor)
        }
        self.input_versions = [
            (tensor, _version(tensor))
            for value in self.inputs.values()
            for tensor in tensors_in(value)
        ]
        self.python_state: Any = random.getstate()
        self.numpy_state: Any = _numpy_state()

    def end_first_run(self) -> None:
        """Note the parameters, and forget the copies of what the first run did not change."""
        self.parameters = _parameters_of(self.block)
        for module in self.modules:
            module.drop_unchanged()
        # A generator that the block does not use stays untouched in the second run, because
        # another thread may use it then.
        if random.getstate() == self.python_state:
            self.python_state = None
        if _same_generator_state(_numpy_state(), self.numpy_state):
            self.numpy_state = None

    @contextmanager
    def restored(self, inputs: Sequence[Any]) -> Generator[list[Any], None, None]:
        """Give modules and generators their state at the start, inside a `with` block.

        Args:
            inputs: The inputs as `checkpoint` gives them to the second run.

        Yields:
            The inputs that the first run began with. What a run can change in them is a copy.

        Raises:
            RuntimeError: A tensor inside an input was written to since the start, or a parameter
                was changed since the first run.
        """
        self._check_inputs()
        self._check_parameters()
        copies: dict[int, Any] = {}
        first_inputs = list(inputs)
        for position, value in self.inputs.items():
            first_inputs[position] = _copied_input(value, copies)
        later_states = [_attributes_of(start.module) for start in self.modules]
        try:
            for start in self.modules:
                start.restore(copies)
            with _python_generator_at(self.python_state), _numpy_generator_at(self.numpy_state):
                yield first_inputs
        finally:
            for start, later in zip(self.modules, later_states, strict=True):
                _set_attributes(start.module, current=_attributes_of(start.module), wanted=later)
            self.parameters = _parameters_of(self.block)

    def _check_inputs(self) -> None:
        """Raise if a tensor inside a list or dict was written to since the start."""
        for tensor, version in self.input_versions:
            if _version(tensor) != version:
                raise RuntimeError(
                    f"{self.option}: a tensor of shape {tuple(tensor.shape)} inside the inputs "
                    f"of {type(self.block).__name__} was changed in place after the block took it, "
                    "so that the block cannot be computed again. Make a new tensor there, or leave "
                    f"out {self.option}"
                )

    def _check_parameters(self) -> None:
        """Raise if a parameter was replaced or written to since the block ran last."""
        now = _parameters_of(self.block)
        for name, (parameter, version) in self.parameters.items():
            # Sharding takes parameters away and puts others in their place.
            if name in now and (now[name][0] is not parameter or now[name][1] != version):
                raise RuntimeError(
                    f"{self.option}: the parameter {name} of {type(self.block).__name__} was "
                    "changed between forward and backward pass (by an optimizer's step, or by the "
                    "end of functional_call), so that the module cannot be computed again. Call "
                    f"backward first, or leave out {self.option}"
                )


class _ModuleStart:
    """What one module held, submodules apart, when a run began."""

    def __init__(self, module: nn.Module, copies: dict[int, Any]) -> None:
        self.module = module
        self.constants: dict[str, Any] = {}  # what no run can change
        self.copied: dict[str, Any] = {}  # copies of what a run can change
        self.tensors: list[tuple[str, Tensor, int | None]] = []  # name, the original, its version
        # What an earlier run computed with a history: kept as it is, because no copy can have that.
        self.computed: dict[str, Tensor] = {}
        for name, value in _attributes_of(module).items():
            if isinstance(value, Tensor) and value.requires_grad:
                self.computed[name] = value
        for name, value in _state_of(module).items():
            if _is_immutable(value):
                self.constants[name] = value
                continue
            self.copied[name] = _copied(value, copies)
            if isinstance(value, Tensor):
                self.tensors.append((name, value, _version(value)))

    def drop_unchanged(self) -> None:
        """Forget the copies of tensors that the run has left as they were."""
        if self.computed:
            attributes = _attributes_of(self.module)
            for name, tensor in list(self.computed.items()):
                if attributes.get(name) is tensor:
                    del self.computed[name]
        if not self.tensors:
            return
        now = _state_of(self.module)
        for name, tensor, version in self.tensors:
            if now.get(name) is not tensor or _version(tensor) != version:
                continue
            # A write through `.data` counts in no version, so the values are compared as well.
            if _same_values(tensor, self.copied[name]):
                self.constants[name] = tensor
                del self.copied[name]
        self.tensors.clear()

    def restore(self, copies: dict[int, Any]) -> None:
        """Give the module what it held, with copies of what a run can change."""
        wanted = {**self.constants, **self.computed}
        for name, value in self.copied.items():
            wanted[name] = _copied(value, copies)
        _set_attributes(self.module, current=_state_of(self.module), wanted=wanted)


def _parameters_of(module: nn.Module) -> dict[str, tuple[Tensor, int | None]]:
    """Return the parameters of a module, sharded ones apart, each with its version."""
    return {
        name: (parameter, _version(parameter))
        for name, parameter in module.named_parameters(remove_duplicate=False)
        if type(parameter) in (nn.Parameter, Tensor)
    }


def _attributes_of(module: nn.Module) -> dict[str, Any]:
    """Return the buffers and plain attributes of a module, submodules apart."""
    attributes = {
        name: value for name, value in vars(module).items() if name not in MODULE_INTERNALS
    }
    attributes.update(module.named_buffers(recurse=False, remove_duplicate=False))
    return attributes


def _state_of(module: nn.Module) -> dict[str, Any]:
    """Return those attributes that can hold state between runs."""
    return {name: value for name, value in _attributes_of(module).items() if _can_be_state(value)}


def _set_attributes(
    module: nn.Module, current: Mapping[str, Any], wanted: Mapping[str, Any]
) -> None:
    """Turn the attributes of a module from the current ones into the wanted ones."""
    for name in current:
        if name not in wanted:
            _remove_attribute(module, name)
    for name, value in wanted.items():
        if name not in current or current[name] is not value:
            setattr(module, name, value)


def _remove_attribute(module: nn.Module, name: str) -> None:
    """Remove what was set since; a buffer becomes None, as one that is still to be filled."""
    if name in vars(module):
        delattr(module, name)
    else:
        setattr(module, name, None)


def _copied(value: Any, copies: dict[int, Any]) -> Any:
    """Return a copy of a tensor, container or generator; one copy for each object.

    Args:
        value: A container is copied with the tensors and containers in it. A tensor that requires a
            gradient, such as a parameter in a list, is returned as it is.
        copies: The copies that were made already, by the identity of their originals.
    """
    if id(value) in copies:
        return copies[id(value)]
    if isinstance(value, Tensor):
        copied = value if value.requires_grad else value.detach().clone()
    elif isinstance(value, torch.Generator):
        copied = value.clone_state()
    elif isinstance(value, CONTAINER_TYPES):
        copied = copy.copy(value)
        copies[id(value)] = copied  # now, because a container may contain itself
        _replace_entries(copied, lambda entry: _copied(entry, copies))
    elif _is_plain_tuple(value):
        copied = tuple(_copied(entry, copies) for entry in value)
    elif isinstance(value, GENERATOR_TYPES):
        # A shallow copy of NumPy's would share its stream of numbers.
        copied = copy.deepcopy(value)
    else:
        copied = value
    copies[id(value)] = copied
    return copied


def _copied_input(value: Any, copies: dict[int, Any]) -> Any:
    """Return an input with its containers and generators copied, but not the tensors in them."""
    if id(value) in copies:
        return copies[id(value)]
    if _is_plain_tuple(value):
        return tuple(_copied_input(entry, copies) for entry in value)
    if not isinstance(value, (*CONTAINER_TYPES, *GENERATOR_TYPES)):
        return value
    if not isinstance(value, CONTAINER_TYPES):
        return _copied(value, copies)
    copied = copy.copy(value)
    copies[id(value)] = copied
    _replace_entries(copied, lambda entry: _copied_input(entry, copies))
    return copied


def _replace_entries(container: Any, replaced: Callable[[Any], Any]) -> None:
    """Replace each entry of a list or dict; those of a set cannot be changed."""
    if isinstance(container, MAPPING_TYPES):
        for key, entry in container.items():
            container[key] = replaced(entry)
    elif isinstance(container, SEQUENCE_TYPES):
        for index, entry in enumerate(container):
            container[index] = replaced(entry)


def _is_immutable(value: Any) -> bool:
    """Return whether no run can change a value: a number, a text, or a tuple of these."""
    if _is_plain_tuple(value):
        return all(_is_immutable(entry) for entry in value)
    return isinstance(value, IMMUTABLE_TYPES)


def _is_plain_tuple(value: Any) -> TypeGuard[tuple[Any, ...]]:
    """Return whether a value is a tuple of no class of its own, which can be built from entries."""
    return type(value) is tuple


def _can_be_state(value: Any) -> bool:
    """Return whether a value of this kind can change what the next run computes."""
    if isinstance(value, (*IMMUTABLE_TYPES, *CONTAINER_TYPES, *GENERATOR_TYPES)):
        return True
    # A tensor with a history belongs to one run, such as a weight that a hook computes.
    return isinstance(value, Tensor) and not value.requires_grad


def _version(tensor: Tensor) -> int | None:
    """Return how often a tensor was written to; None where nothing counts it."""
    return None if tensor.is_inference() else tensor._version


def _same_values(first: Tensor, second: Tensor) -> bool:
    """Return whether two tensors are equal; False where it cannot be known."""
    is_ordinary = type(first) is Tensor and first.layout is torch.strided and not first.is_meta
    return is_ordinary and same_bits(first, second)


@contextmanager
def _python_generator_at(state: Any) -> Generator[None, None, None]:
    """Give Python's generator a state inside a `with` block; None: leave it alone."""
    if state is None:
        yield
        return
    later = random.getstate()
    random.setstate(state)
    try:
        yield
    finally:
        random.setstate(later)


@contextmanager
def _numpy_generator_at(state: Any) -> Generator[None, None, None]:
    """Give NumPy's generator a state inside a `with` block; None: leave it alone."""
    if state is None:
        yield
        return
    later = _numpy_state()
    np.random.set_state(state)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(later)  # noqa: NPY002


def _numpy_state() -> dict[str, Any]:
    """Return the state of the generator behind NumPy's functions, which other code may use."""
    return np.random.get_state(legacy=False)  # noqa: NPY002


def _same_generator_state(first: Any, second: Any) -> bool:
    """Return whether two states of a NumPy generator, which are nested dicts, are equal."""
    if isinstance(first, MAPPING_TYPES):
        return all(_same_generator_state(first[key], second[key]) for key in first)
    return np.array_equal(first, second)
