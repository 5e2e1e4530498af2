"""Architectures by name: how a file can say which network it holds, without importing anything.

A checkpoint stores the name of an architecture and the arguments of its builder. `load` looks the
name up here, so a file can only name what somebody registered on purpose. There are three ways to
register an architecture of one's own:

- an entry point in the pyproject.toml of an installed package:
  `[project.entry-points.elasticnet_architectures]` with a line `mynet = "mypackage:ARCHITECTURE"`;
- a call, `register("mynet", ARCHITECTURE)`, in a module that is imported before the file is read;
- `elasticnet --import mypackage ...`, which imports such a module for one command.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from elasticnet.wrapper import ElasticWrapper

ENTRY_POINT_GROUP = "elasticnet_architectures"
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Architecture:
    """What the library needs to know of an architecture to save, load and run its networks.

    Attributes:
        build: Builds a network; keyword arguments are those that a file records, and `taps`, the
            depths that carry a prediction. Plain values only: bool, int, float, str, None.
        depth_argument: The argument that counts the blocks. A network that is cut to a depth is
            recorded and built with this argument set to the depth.
        count_arguments: The other arguments that multiply modules, such as the blocks in a group.
            Their product with the number of blocks is compared with the number of tensors in a
            file before anything is built, so that a hostile file cannot ask for a million blocks.
        example: Returns an input for a network with these arguments: what `export`, `profile` and
            `check` run when they are given none. None where only the user can know.
        tiny_example: Returns a smaller one, on which `save` compares the network with what its file
            describes. None: `example` is small enough.
        packaged_files: Returns the checkpoints that come with the architecture's package, by what
            they are called: a file "x4" of the architecture "asrn" is given as "asrn-x4" wherever
            a file of weights is taken. Called when such a name is looked up.
        extras: What one room of the library knows to read, such as scale and value range for
            images; see the room's own page. The core passes it on and reads nothing in it.
    """

    build: Callable[..., ElasticWrapper]
    depth_argument: str = "num_blocks"
    count_arguments: tuple[str, ...] = ()
    example: Callable[[Mapping[str, Any]], Any] | None = None
    tiny_example: Callable[[Mapping[str, Any]], Any] | None = None
    packaged_files: Callable[[], Mapping[str, str | os.PathLike[str]]] | None = None
    extras: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def arguments_at(self, arguments: Mapping[str, Any], depth: int) -> dict[str, Any]:
        """Return the builder's arguments of the same network cut to `depth` blocks.

        Args:
            arguments: Those of the whole network.
            depth: The number of blocks that stay, from 1.
        """
        return {**arguments, self.depth_argument: depth}

    def count_blocks(self, arguments: Mapping[str, Any]) -> int:
        """Return how many blocks a network with these arguments has, those in groups counted.

        Args:
            arguments: Of the builder, as a file may hold them: of any kind. A count below 1 counts
                as 1, so that it does not hide the other ones.
        """
        product = 1
        for argument in {self.depth_argument, *self.count_arguments}:
            count = arguments.get(argument)
            if isinstance(count, int):
                product *= max(1, count)
        return product


_registered: dict[str, Architecture] = {}


def register(name: str, architecture: Architecture) -> None:
    """Make `name` known to `load`, to the command and to everything else that reads files.

    Registering the same object under its name a second time changes nothing.

    Args:
        name: What files will hold; letters, digits, `-`, `_` and `.`, beginning with a letter.
        architecture: The description. Nothing of it is called here.

    Raises:
        TypeError: `architecture` is not an `Architecture`.
        ValueError: The name has other characters, or is taken by another architecture. The registry
            is then as it was.
    """
    register_all({name: architecture})


def register_all(architectures: Mapping[str, Architecture]) -> None:
    """Register several architectures, or none of them where one is refused.

    Args:
        architectures: By name; as in `register`.

    Raises:
        TypeError: As in `register`.
        ValueError: As in `register`.
    """
    for name, architecture in architectures.items():
        _check(name, architecture)
    _registered.update(architectures)


def unregister(name: str) -> None:
    """Forget a name that a call registered, for example to register a changed version of it.

    Args:
        name: The name. One that is not registered changes nothing; one that an installed package
            declares is found again.
    """
    _registered.pop(name, None)


def find(name: str) -> Architecture:
    """Return the architecture that was registered as `name`, by a call or by an entry point.

    Args:
        name: The name in a file, or one of `names()`.

    Raises:
        ValueError: Nobody registered the name; the message lists the names and the remedies.
        ImportError: The package that declares the name as an entry point cannot be imported.
        TypeError: What the entry point names is not an `Architecture`.
    """
    if name in _registered:
        return _registered[name]
    declared = _entry_points()
    if name not in declared:
        listed = ", ".join(names()) or "none"
        raise ValueError(
            f"architecture {name!r} is not registered (known: {listed}). Import the module that "
            "registers it (on the command line: --import MODULE), or install the package that "
            "declares it. In a source tree that is not installed, `import elasticnet.sr` "
            "registers the library's own"
        )
    register(name, _load(declared[name]))
    return _registered[name]


def names() -> tuple[str, ...]:
    """Return all names that `find` knows, sorted; no package is imported for it."""
    return tuple(sorted({*_registered, *_entry_points()}))


def build(name: str, /, **arguments: Any) -> ElasticWrapper:
    """Build a network of a registered architecture and record in it how it was built.

    `save` then stores name and arguments, and `load` needs nothing but the file.

    Args:
        name: A registered name.
        **arguments: Those of the architecture's builder; `taps` is passed on but not recorded,
            since every network knows its own.

    Returns:
        The network, with its `origin` set.

    Raises:
        ValueError: Unknown name, or the builder refused an argument.
        TypeError: The builder returned something else than an ElasticWrapper.
    """
    from elasticnet.wrapper import ElasticWrapper, Origin

    architecture = find(name)
    net = architecture.build(**arguments)
    if not isinstance(net, ElasticWrapper):
        raise TypeError(
            f"the builder of {name!r} returned a {type(net).__name__}: expected an ElasticWrapper"
        )
    if net.origin is None:
        recorded = _with_defaults(architecture.build, arguments)
        recorded.pop("taps", None)
        net.origin = Origin(name, recorded)
    return net


def architecture_of(net: Any) -> Architecture | None:
    """Return the architecture that a network was built by, or None where it is a user's own.

    Args:
        net: Any network; the `origin` of an `ElasticWrapper` says which registered builder made it.
    """
    from elasticnet.wrapper import ElasticWrapper

    # Other modules may have an attribute of this name that means something else.
    if not isinstance(net, ElasticWrapper) or net.origin is None:
        return None
    name = net.origin.architecture
    return find(name) if name in names() else None


def recorded(net: ElasticWrapper) -> tuple[str | None, dict[str, Any]]:
    """Return the name and the arguments that build a network of this size; None and {} without.

    A network that was cut or grown keeps the `origin` of the network that it was made of; here the
    arguments are those of its own number of blocks.

    Args:
        net: Any network.

    Raises:
        ValueError: Its origin names an architecture that is not registered.
    """
    if net.origin is None:
        return None, {}
    name, arguments = net.origin
    return name, find(name).arguments_at(arguments, depth=len(net.blocks))


def _check(name: str, architecture: Architecture) -> None:
    """Refuse a name or an architecture that cannot be registered."""
    if not isinstance(architecture, Architecture):
        raise TypeError(
            f"architecture {name!r} is a {type(architecture).__name__}: expected an Architecture"
        )
    if not NAME.fullmatch(name):
        raise ValueError(
            f"architecture name {name!r}: expected letters, digits, '-', '_' and '.', "
            "beginning with a letter"
        )
    holder = _holder(name)
    if holder is not None and holder is not architecture:
        raise ValueError(
            f"architecture name {name!r} is taken by another architecture: choose another name"
        )


def _holder(name: str) -> Architecture | None:
    """Return what has a name already, by a call or by an entry point."""
    if name in _registered:
        return _registered[name]
    declared = _entry_points().get(name)
    if declared is None:
        return None
    try:
        return declared.load()
    except Exception:
        # The package is broken, or it is being imported at this moment and registers itself by a
        # call, too: it does not hold the name yet.
        return None


def _load(entry_point: EntryPoint) -> Any:
    """Return what an installed package declares; a package that is broken is named."""
    try:
        return entry_point.load()
    except Exception as error:  # a package that is imported can raise anything
        package = entry_point.dist.name if entry_point.dist else "an installed package"
        raise ImportError(
            f"architecture {entry_point.name!r}: {package} declares it as {entry_point.value!r}, "
            f"which cannot be imported ({type(error).__name__}: {error})"
        ) from error


def _with_defaults(function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments with the function's default values, which may change one day."""
    signature = inspect.signature(function)
    bound = signature.bind(**arguments)
    bound.apply_defaults()
    values = dict(bound.arguments)
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            values |= values.pop(parameter.name, {})
    return values


@functools.cache
def _entry_points() -> dict[str, EntryPoint]:
    """Return what the packages declare that were installed when this was first asked, by name."""
    return {each.name: each for each in entry_points(group=ENTRY_POINT_GROUP)}
