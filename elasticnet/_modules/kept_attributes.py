"""What a forward assigns to its own model: noticed, and put back."""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeGuard

from torch import nn

CONTAINERS = (dict, list, deque, set)


class KeptAttributes:
    """The attributes of modules as they were, and what the lists, dicts and sets in them held.

    What hooks hold is kept, too: the attributes of hook objects, and the lists, dicts and sets that
    a function closes over.

    Args:
        modules: The modules by their paths in the model; "" is the path of the model itself.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._modules = dict(modules)
        self._classes = {path: type(module) for path, module in modules.items()}
        self._attributes = {path: _attributes(module) for path, module in modules.items()}
        self._contents: list[tuple[Any, Any]] = []  # a container, and a copy of it
        for module in modules.values():
            for container in _containers_of(module):
                self._contents.append((container, container.copy()))

    def assigned(self) -> list[str]:
        """Return the paths of the attributes that hold another object now, such as "body.mean"."""
        paths: list[str] = []
        for path, module in self._modules.items():
            before = self._attributes[path]
            for name, value in _attributes(module).items():
                if name not in before or before[name] is not value:
                    paths.append(f"{path}.{name}" if path else name)
        return paths

    def put_back(self) -> None:
        """Make all of it what it was; lazy modules that became their final class stay so."""
        final: set[int] = set()
        for path, module in self._modules.items():
            if type(module) is not self._classes[path]:
                final.update(id(container) for container in _containers_of(module))
        for container, before in self._contents:
            if id(container) not in final:
                _put_back(container, before)


@contextmanager
def attributes_put_back(model: nn.Module) -> Generator[KeptAttributes, None, None]:
    """Put back what the forwards of a model assign to it inside a `with` block.

    Args:
        model: The model; the attributes of all its modules are kept.

    Yields:
        What was kept, which says what has been assigned.
    """
    untyped: Any = model  # PyTorch does not annotate named_modules
    kept = KeptAttributes(dict(untyped.named_modules()))
    try:
        yield kept
    finally:
        kept.put_back()


def _attributes(module: nn.Module) -> dict[str, Any]:
    """The attributes of a module, its buffers among them."""
    attributes = dict(vars(module))
    attributes.update(attributes.pop("_buffers"))
    return attributes


def values_held_by(module: nn.Module) -> list[Any]:
    """Return what a module holds, each value once: attributes, buffers, and what is inside of them.

    What other modules hold is theirs; tensors and plain objects are one value.

    Args:
        module: Any module.
    """
    found: list[Any] = []
    seen: set[int] = set()
    waiting: list[Any] = [vars(module)]
    while waiting:
        value = waiting.pop()
        if id(value) in seen or isinstance(value, nn.Module):
            continue
        seen.add(id(value))
        found.append(value)
        waiting.extend(_held_by(value))
    return found


def _containers_of(module: nn.Module) -> list[Any]:
    """The dicts, lists and sets that hold a module's attributes, and those inside of them."""
    return [value for value in values_held_by(module) if isinstance(value, CONTAINERS)]


def _held_by(value: Any) -> list[Any]:
    """What may change inside of a value: entries, and what a function or a hook object holds."""
    if _is_dict(value):
        return list(value.values())
    if _is_collection(value):
        return list(value)
    if isinstance(value, types.MethodType):
        return [value.__self__]
    if isinstance(value, types.FunctionType):
        return [_contents_of(cell) for cell in value.__closure__ or ()]
    if callable(value) and not isinstance(value, type):
        return [getattr(value, "__dict__", None)]
    return []


def _contents_of(cell: types.CellType) -> Any:
    """What a variable of a closure holds; None where it holds nothing yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _put_back(container: Any, before: Any) -> None:
    """Give a dict, list or set its former content; one that did not change is not touched."""
    if _is_dict(container):
        _put_back_entries(container, before)
    elif _is_list(container):
        if not _same_objects(container, before):
            container.clear()
            container.extend(before)
    elif container != before:  # a set
        container.clear()
        container.update(before)


def _put_back_entries(container: dict[Any, Any], before: dict[Any, Any]) -> None:
    """Give a dict its former entries."""
    for key in [key for key in container if key not in before]:
        del container[key]
    for key, value in before.items():
        if key not in container or container[key] is not value:
            container[key] = value


def _same_objects(first: Sequence[Any], second: Sequence[Any]) -> bool:
    """Whether two lists hold the very same objects, whatever these say about being equal."""
    if len(first) != len(second):
        return False
    return all(one is other for one, other in zip(first, second, strict=True))


# isinstance, after which the type checker takes the entries as Any


def _is_dict(value: Any) -> TypeGuard[dict[Any, Any]]:
    return isinstance(value, dict)


def _is_list(value: Any) -> TypeGuard[list[Any] | deque[Any]]:
    return isinstance(value, (list, deque))


def _is_collection(value: Any) -> TypeGuard[list[Any] | deque[Any] | tuple[Any, ...] | set[Any]]:
    return isinstance(value, (list, deque, tuple, set))
