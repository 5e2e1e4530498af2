"""Finds the parts of a transformers model, by watching one run: layers, and what is behind them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn

from elasticnet._modules.compare import same_bits
from elasticnet.retrofit.graph import first_of
from elasticnet.wrapper import evaluating

# what models raise for inputs that they do not take, or that they miss
RUN_ERRORS = (
    AssertionError,
    AttributeError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)
ENCODER_AND_DECODER = (
    "expected one stack of layers, no encoder and decoder. Its encoder is split by itself: "
    "model.get_encoder()"
)
STAGES_REMEDY = (
    "Its stages do not fit one head. timm has most networks of this kind, and "
    "elasticnet.retrofit.timm.split(model, images, stages=k) makes adapters for them; or wrap the "
    "parts by hand, with adapters"
)
BY_HAND = "wrap its parts by hand"
TOKENS = "b n c"  # the layout of most models


def _all_tokens(x: Tensor) -> Tensor:
    return x


def _first_token(x: Tensor) -> Tensor:
    return x[:, 0]


def _mean_token(x: Tensor) -> Tensor:
    return x.mean(dim=1)


def _mean_of_first_two(x: Tensor) -> Tensor:
    return (x[:, 0] + x[:, 1]) / 2  # a class and a distillation token


# how models pool hidden states (b, n, c) before, or without, a module
POOLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "all": _all_tokens,
    "first": _first_token,
    "mean": _mean_token,
    "first two": _mean_of_first_two,
}


class Pooler(NamedTuple):
    """How the pooled output is made of the last hidden state.

    Attributes:
        tokens: What it takes, a name in `POOLINGS`.
        path: The path of the module that maps it, if any.
    """

    tokens: str
    path: str | None


class LayerKind(NamedTuple):
    """How the base model calls a layer, and what it gets from it.

    Attributes:
        x_name: The name of the layer's first parameter, which the hidden states are.
        is_given: Which entries of the tuple that it returns are not None; None where it returns
            no tuple.
    """

    x_name: str
    is_given: tuple[bool, ...] | None


class Anatomy(NamedTuple):
    """The parts of a model.

    Attributes:
        base: The base model: what makes hidden states of the model's input.
        base_path: Its path in the model; "" where it is the model.
        path: Where the list of the layers is in the base model.
        layers: The layers.
        kinds: How each layer is called.
        layout: The axes of the features.
        norms: The paths in the base model of the modules that run behind the layers, one after the
            other.
        pooler: How the pooled output is made of what they return, if there is one.
        result: The class of what the base model returns.
        only_behind: Those paths of `norms` and the pooler that do not run before the layers, too.
        left_out: What else the base model returns, by name, and the head cannot make.
    """

    base: Any
    base_path: str
    path: str
    layers: Sequence[nn.Module]
    kinds: Sequence[LayerKind]
    layout: str
    norms: Sequence[str]
    pooler: Pooler | None
    result: type
    only_behind: Sequence[str]
    left_out: Sequence[str]

    @property
    def behind(self) -> list[str]:
        """The paths of all modules that run behind the layers."""
        if self.pooler is None or self.pooler.path is None:
            return [*self.norms]
        return [*self.norms, self.pooler.path]


class Ran(NamedTuple):
    """One run of a module.

    Attributes:
        name: Its path.
        input: Its first input.
        output: What it returned.
    """

    name: str
    input: Any
    output: Any


class ModelRun(NamedTuple):
    """One run of a model.

    Attributes:
        started: The paths of its modules, in the order in which they started.
        ran: What each did, by path; of one that ran more than once, the last time.
    """

    started: Sequence[str]
    ran: Mapping[str, Ran]

    def ran_once(self, name: str) -> bool:
        """Return whether a module ran exactly once.

        Args:
            name: Its path.
        """
        return name in self.ran and self.started.count(name) == 1


def anatomy_of(model: nn.Module, example: Tensor, inputs: Mapping[str, Any]) -> Anatomy:
    """Find the layers of a model, and what runs behind them, in one run.

    Args:
        model: A transformers model.
        example: Its main input.
        inputs: Further inputs.

    Returns:
        Its parts.

    Raises:
        ValueError: The model is no stack of layers with modules behind it; the message says why.
    """
    try:
        return _anatomy(model, example, inputs)
    except ValueError as error:
        raise ValueError(f"{type(model).__name__} is not split: {error}") from error


def _anatomy(model: Any, example: Tensor, inputs: Mapping[str, Any]) -> Anatomy:
    """The parts of a model, from one run."""
    run = _run_on(model, example, inputs)
    list_path = _path_of_layers(model, run)
    names = _names_in(model, list_path)
    layers = [run.ran[name] for name in names]
    _check_shapes(list_path, layers)
    _check_nothing_between(layers)
    layout = _layout(model, list_path, run.ran[names[-1]])
    base_path = _path_of_base(model, list_path, run)
    base: Any = model.get_submodule(base_path)
    outcome = run.ran[base_path].output
    if "encoder_last_hidden_state" in outcome:
        raise ValueError(ENCODER_AND_DECODER)

    behind = _started_behind(run, base_path, last_layer=names[-1])
    norms, last = _norms(run, behind, names[-1], outcome["last_hidden_state"])
    path = _inside(list_path, base_path)
    if not same_bits(last, outcome["last_hidden_state"]):
        changes = _said_of_changes(base, path)
        raise ValueError(f"what runs behind its {path} is no chain of modules{changes}: {BY_HAND}")
    pooler = _pooler(run, behind, last, outcome.get("pooler_output"))
    made = {"last_hidden_state", "past_key_values"}
    if pooler is not None:
        made.add("pooler_output")
    modules_behind = [*norms]
    if pooler is not None and pooler.path is not None:
        modules_behind.append(pooler.path)
    before = run.started[: run.started.index(names[0])]
    return Anatomy(
        base=base,
        base_path=base_path,
        path=path,
        layers=[model.get_submodule(name) for name in names],
        kinds=[_kind(model.get_submodule(name), run.ran[name].output) for name in names],
        layout=layout,
        norms=[_inside(name, base_path) for name in norms],
        pooler=None if pooler is None else pooler._replace(path=_inside(pooler.path, base_path)),
        result=type(outcome),
        only_behind=[_inside(name, base_path) for name in modules_behind if name not in before],
        left_out=[name for name in outcome if name not in made],
    )


def _inside(path: Any, base_path: str) -> Any:
    """A module's path in the base model, from its path in the model; None stays None."""
    return path if path is None else path.removeprefix(f"{base_path}.")


def _kind(layer: nn.Module, output: Any) -> LayerKind:
    """How a layer is called that returned this output."""
    x_name = next(iter(inspect.signature(layer.forward).parameters))
    if not _is_tuple(output):
        return LayerKind(x_name=x_name, is_given=None)
    return LayerKind(x_name=x_name, is_given=tuple(value is not None for value in output))


# --- the run


def _run_on(model: Any, example: Tensor, inputs: Mapping[str, Any]) -> ModelRun:
    """One run of a model, watched."""
    try:
        run = _watched_run(model, example, inputs)
    except RUN_ERRORS as error:
        if getattr(model.config, "is_encoder_decoder", False):
            raise ValueError(ENCODER_AND_DECODER) from error
        reason = str(error).split("\n")[0]
        raise ValueError(
            f"it does not run on the example ({reason}): pass its other inputs by name, or split "
            "the part of it that is one stack of layers"
        ) from error
    return run


def without_cache(model: nn.Module) -> dict[str, Any]:
    """Return the keyword arguments with which a model keeps no cache.

    A cache stores keys in another order, which changes the last bits; a net keeps none.

    Args:
        model: A transformers model.
    """
    takes_switch = "use_cache" in inspect.signature(model.forward).parameters
    return {"use_cache": False} if takes_switch else {}


def _watched_run(model: Any, example: Tensor, inputs: Mapping[str, Any]) -> ModelRun:
    """One run of a model whose modules have hooks meanwhile."""
    started: list[str] = []
    ran: dict[str, Ran] = {}
    hooks: list[Any] = []
    for name, module in model.named_modules():
        hooks += _watch(name, module, started, ran)
    try:
        with evaluating(model), torch.no_grad():
            model(example, **inputs, **without_cache(model))
    finally:
        for hook in hooks:
            hook.remove()
    return ModelRun(started=started, ran=ran)


def _watch(name: str, module: nn.Module, started: list[str], ran: dict[str, Ran]) -> list[Any]:
    """Note when a module starts and what it does; returns the hooks, to be removed."""

    def start(_module: nn.Module, _args: Any) -> None:
        started.append(name)

    def end(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        values = [*args, *kwargs.values()]
        ran[name] = Ran(name=name, input=values[0] if values else None, output=output)

    return [
        module.register_forward_pre_hook(start),
        module.register_forward_hook(end, with_kwargs=True),
    ]


# --- layers and base model


def _path_of_layers(model: Any, run: ModelRun) -> str:
    """Where the largest list of modules is that run once each, in order, on features."""
    sizes: dict[str, int] = {}
    not_in_order: dict[str, int] = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or f"{name}.0" not in run.ran:
            continue
        is_chain = _run_in_order(run, _names_in(model, name))
        found = sizes if is_chain else not_in_order
        found[name] = sum(parameter.numel() for parameter in module.parameters())
    if not sizes and not_in_order:
        largest = max(not_in_order, key=not_in_order.__getitem__)
        raise ValueError(f"its {largest} do not run once each and in order")
    if not sizes:
        raise ValueError("its forward calls no base model with a list of layers")
    return max(sizes, key=sizes.__getitem__)


def _names_in(model: nn.Module, list_path: str) -> list[str]:
    """The paths of the modules in a list."""
    container = model.get_submodule(list_path)
    return [f"{list_path}.{name}" for name, _ in container.named_children()]


def _run_in_order(run: ModelRun, names: Sequence[str]) -> bool:
    """Whether modules run once each, in order, and take and return features."""
    wanted = set(names)
    if [name for name in run.started if name in wanted] != list(names):
        return False
    return all(_takes_features(run.ran[name]) for name in names if name in run.ran)


def _takes_features(ran: Ran) -> bool:
    """Whether a module mapped a tensor of floats to another, such as no embedding does."""
    x = ran.input
    return isinstance(x, Tensor) and x.is_floating_point() and _is_tensor(first_of(ran.output))


def _check_shapes(list_path: str, layers: Sequence[Ran]) -> None:
    """Refuse layers that do not keep the shape of the features."""
    before = tuple(layers[0].input.shape)
    for layer in layers:
        shape = tuple(first_of(layer.output).shape)
        if shape != before:
            raise ValueError(
                f"its {list_path} change the shape of the features, at {layer.name} from {before} "
                f"to {shape}. {STAGES_REMEDY}"
            )


def _check_nothing_between(layers: Sequence[Ran]) -> None:
    """Refuse a forward that changes the features between two layers.

    The tensors are compared and not their values: what it adds may be zeros until it is trained, as
    the position embeddings between YOLOS' layers are.
    """
    for layer, following in pairwise(layers):
        if following.input is not first_of(layer.output):
            raise ValueError(
                f"its forward changes the features between {layer.name} and {following.name}, "
                f"which the parts would not do; {BY_HAND}"
            )


def _layout(model: Any, list_path: str, last_layer: Ran) -> str:
    """The axes of the features, by their shape."""
    shape = tuple(first_of(last_layer.output).shape)
    if len(shape) == 3:
        return TOKENS
    channels = getattr(model.config, "hidden_size", None)
    if len(shape) == 4 and shape[-1] == channels:
        return "b h w c"
    if len(shape) == 4 and shape[1] == channels:
        return "b c h w"
    raise ValueError(
        f"its {list_path} work on features of shape {shape}: expected (batch, tokens, channels); "
        f"{BY_HAND}"
    )


def _path_of_base(model: Any, list_path: str, run: ModelRun) -> str:
    """The path of what makes hidden states of the model's own input: the outermost such module.

    What the library calls the base model comes first.
    """
    parts = list_path.split(".")
    paths = [".".join(parts[:end]) for end in range(len(parts))]
    own = getattr(model, "base_model", None)
    paths.sort(key=lambda path: model.get_submodule(path) is not own)
    for path in paths:
        if run.ran_once(path) and _is_base(model.get_submodule(path), run.ran[path].output):
            return path
    raise ValueError(
        f"nothing around its {list_path} returns a last_hidden_state for the model's own input: "
        f"{BY_HAND}"
    )


def _is_base(module: nn.Module, output: Any) -> bool:
    """Whether a module that returned this is a base model."""
    parameters = inspect.signature(module.forward).parameters
    takes_anything = next(iter(parameters.values())).kind is inspect.Parameter.VAR_POSITIONAL
    takes_input = getattr(module, "main_input_name", "input_ids") in parameters or takes_anything
    return takes_input and isinstance(output, Mapping) and "last_hidden_state" in output


# --- behind the layers


def _started_behind(run: ModelRun, base_path: str, last_layer: str) -> list[str]:
    """The paths of the modules of the base model that start when the last layer is done.

    Those inside of others that do are left out.
    """
    names: list[str] = []
    prefix = f"{base_path}." if base_path else ""
    for name in run.started[run.started.index(last_layer) + 1 :]:
        is_inner = name.startswith(tuple(f"{outer}." for outer in (last_layer, *names)))
        if name.startswith(prefix) and not is_inner:
            names.append(name)
    return names


def _norms(
    run: ModelRun, behind: Sequence[str], last_layer: str, wanted: Tensor
) -> tuple[list[str], Any]:
    """The modules that turn the last layer's output into the last hidden state, and their result.

    Each takes what the one before returned. The longest chain counts: dropout at the end returns,
    in eval mode, what it was given.
    """
    chain: list[str] = []
    x = first_of(run.ran[last_layer].output)
    # the chain up to here, and what it returns
    best = ([*chain], x)
    for name in behind:
        if run.ran[name].input is not x:
            continue
        chain.append(name)
        x = first_of(run.ran[name].output)
        if x is wanted or same_bits(x, wanted):
            best = ([*chain], x)
    return best


def _pooler(run: ModelRun, behind: Sequence[str], last: Tensor, pooled: Any) -> Pooler | None:
    """How the pooled output is made of the last hidden state; None if that is not known."""
    if not isinstance(pooled, Tensor):
        return None
    for tokens, pool in POOLINGS.items():
        if same_bits(pooled, pool(last)):
            return Pooler(tokens=tokens, path=None)
    for tokens, pool in POOLINGS.items():
        for name in behind:
            ran = run.ran[name]
            takes_tokens = isinstance(ran.input, Tensor) and same_bits(ran.input, pool(last))
            if takes_tokens and same_bits(first_of(ran.output), pooled):
                return Pooler(tokens=tokens, path=name)
    return None


def _said_of_changes(base: nn.Module, path: str) -> str:
    """The end of a message that names what was put on the modules around the layers; "" if none."""
    found: list[str] = []
    module = base
    for name in ("", *path.split(".")):
        if name:
            module = getattr(module, name)
        kind = type(module).__name__
        for hook in vars(module)["_forward_hooks"].values():
            hook_name = getattr(hook, "__qualname__", type(hook).__qualname__)
            found.append(f"the forward hook {hook_name} on its {kind}")
        if "forward" in vars(module):
            found.append(f"the replaced forward of its {kind}")
    if not found:
        return ""
    return f" (the parts do not have {' and '.join(found)})"


def _is_tuple(value: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, (tuple, list))


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)
