"""Splits transformers models of one stack of layers: ViT, encoders such as BERT, decoders such as
GPT-2 and Llama.

Their forwards branch on their inputs, so nothing is traced: the stem runs the base model's own
forward up to its layers and notes what each layer would have been given (masks, positions, rotary
embeddings); the head runs the model's own forward with a stand-in where the base model was. Both
are shells: new objects around the model's own modules.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from elasticnet.retrofit.graph import call_with_arguments
from elasticnet.retrofit.parts import Split, equal, verify
from elasticnet.wrapper import evaluating

CALLS: ContextVar[list[tuple[Any, tuple[Any, ...], dict[str, Any]]]] = ContextVar("calls")
RESULTS = ("logits", "last_hidden_state")


def split(model: nn.Module, example: Tensor, *, output: str | None = None, **inputs: Any) -> Split:
    """Take apart a transformers model into stem, layers and head; neither its modules nor its code
    are changed.

    example: token ids (b, n) or pixels (b, c, h, w). inputs: more inputs to prove the parts with,
    such as attention_mask; they are proved without them, too. The wrapped net is called as
    `net(ids, attention_mask=mask)`, with any inputs of the model but labels and caches, and returns
    one tensor: `output` of the model's result, which is its logits or else its last hidden state.
    Raises ValueError, which says why, for a model that is not one stack of layers (an encoder with
    a decoder, say), and for one that the parts do not reproduce.
    """
    base: Any = getattr(model, "base_model", None)
    if base is None or not hasattr(model, "config"):
        raise ValueError(
            f"{type(model).__name__} is not a transformers model: expected one with a base_model"
        )
    anatomy = _anatomy(model, base, example, inputs)
    stem, head = LayerInputs(base, anatomy), HiddenStateHead(model, base, anatomy, output)
    skip = "input" if head.takes_embeddings else None
    parts = Split(
        stem, anatomy.layers, head, "b n c", _prefix_tokens(base), {}, call_with_arguments, skip
    )

    def result(*x: Any, **more: Any) -> Any:
        return head.result(model(*x, **more))

    verify(parts, model, example, call=result)
    if inputs:
        verify(parts, model, example, call=result, **inputs)
    return parts


class LayerInputs(nn.Module):
    """A base model up to its layers: returns the first layer's x and, as context, each layer's
    further arguments.
    """

    def __init__(self, base: nn.Module, anatomy: Anatomy) -> None:
        super().__init__()
        probes = nn.ModuleList(
            LayerProbe(layer, last=layer is anatomy.layers[-1]) for layer in anatomy.layers
        )
        behind = [*anatomy.norms, *([anatomy.pooler] if anatomy.pooler else [])]
        self.base = shell(base, {anatomy.path: probes, **dict.fromkeys(behind)})
        self.main = str(getattr(base, "main_input_name", "input_ids"))
        names = [*inspect.signature(base.forward).parameters]
        self.names = [
            name
            for name in names
            if name not in (self.main, "past_key_values", "use_cache", "kwargs")
        ]
        self.caches = "use_cache" in names

    def forward(
        self,
        x: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        **inputs: Any,
    ) -> tuple[Tensor, list[tuple[tuple[Any, ...], dict[str, Any]]]]:
        inputs |= {
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
        }
        inputs = {name: value for name, value in inputs.items() if value is not None}
        unknown = [name for name in inputs if name not in self.names]
        if unknown:
            raise TypeError(
                f"unexpected keyword argument {unknown[0]!r}: expected some of {', '.join(self.names)}"
            )
        caching = {"use_cache": False} if self.caches else {}
        calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = recorded(
            self.base, {self.main: x, **inputs, **caching}
        )
        return calls[0][0], [(args, kwargs) for _, args, kwargs in calls]


def _recorded(base: nn.Module, given: dict[str, Any]) -> Any:
    """What the probes in `base` noted in one run."""
    calls = []
    token = CALLS.set(calls)
    try:
        base(**given)
    except LayersReached:
        pass
    finally:
        CALLS.reset(token)
    return calls


recorded: Any = torch.compiler.disable(_recorded)  # compilers do not trace context variables


class LayersReached(Exception):
    """The last layer was called: what comes behind it is the head's."""


class LayerProbe(nn.Module):
    """Stands where a layer stood: notes its arguments and hands x on; it answers for the layer's
    plain attributes.
    """

    def __init__(self, layer: nn.Module, last: bool) -> None:
        super().__init__()
        kept = {
            name: value
            for name, value in vars(layer).items()
            if name[0] != "_" and name != "training"
        }
        self.__dict__.update(
            {name: value for name, value in kept.items() if isinstance(value, (str, int, float))}
        )
        self.probe_is_last = last

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        x = args[0] if args else kwargs.pop("hidden_states")
        CALLS.get().append((x, args[1:], kwargs))
        if self.probe_is_last:
            raise LayersReached
        return x


class HiddenStateHead(nn.Module):
    """What a model does behind its layers: final norm, pooler and the model's own forward around
    its base model.
    """

    def __init__(
        self, model: nn.Module, base: nn.Module, anatomy: Anatomy, output: str | None
    ) -> None:
        super().__init__()
        stand_in = HiddenStateBase(base, anatomy)
        places = [name for name, module in model.named_modules() if module is base]
        self.model = shell(model, {places[0]: stand_in}) if places[0] else stand_in
        self.main = str(getattr(model, "main_input_name", "input_ids"))
        self.takes_embeddings = (
            model is not base and "inputs_embeds" in inspect.signature(model.forward).parameters
        )
        self.output = output

    def forward(self, features: Tensor, x: Tensor | None = None) -> Tensor:
        given = (
            {self.main: x, "inputs_embeds": features}
            if self.takes_embeddings
            else {self.main: features}
        )
        return self.result(self.model(**given))

    def result(self, outputs: Any) -> Tensor:
        names = (
            [self.output]
            if self.output
            else [name for name in RESULTS if outputs.get(name) is not None]
        )
        if not names or outputs.get(names[0]) is None:
            raise ValueError(f"output {self.output!r}: the model's result has {', '.join(outputs)}")
        return outputs[names[0]]


class HiddenStateBase(nn.Module):
    """Stands where a base model stood: its last steps alone, on features instead of the input."""

    def __init__(self, base: nn.Module, anatomy: Anatomy) -> None:
        super().__init__()
        self.result = anatomy.result
        self.norms, self.pools = [_last(name) for name in anatomy.norms], anatomy.pooler is not None
        for name in [*anatomy.norms, *([anatomy.pooler] if anatomy.pooler else [])]:
            self.add_module(_last(name), base.get_submodule(name))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        x = kwargs.get("inputs_embeds")
        x = x if x is not None else [*args, *kwargs.values()][0]
        for name in self.norms:
            x = self.get_submodule(name)(x)
        pooled = {"pooler_output": self.get_submodule("pooler")(x)} if self.pools else {}
        return self.result(last_hidden_state=x, **pooled)


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def shell(module: nn.Module, replaced: dict[str, nn.Module | None]) -> nn.Module:
    """A new object of the module's class around its very parameters and modules, with others in the
    places named.
    """
    copied = module.__class__.__new__(module.__class__)
    copied.__dict__ = {**module.__dict__, "_modules": dict(module._modules)}
    inner: dict[str, dict[str, nn.Module | None]] = {}
    for path, other in replaced.items():
        name, _, rest = path.partition(".")
        if rest:
            inner.setdefault(name, {})[rest] = other
        else:
            copied._modules[name] = other
    for name, others in inner.items():
        copied._modules[name] = shell(module.get_submodule(name), others)
    return copied


class Anatomy(NamedTuple):
    """Where a base model's layers are, which of its modules run behind them, and the class of its
    result.
    """

    path: str
    layers: Sequence[nn.Module]
    norms: Sequence[str]
    pooler: str | None
    result: type


class Ran(NamedTuple):
    """A module that ran: its path, its first input, what it returned (of a tuple, the first
    entry).
    """

    name: str
    input: Any
    output: Any


def _anatomy(model: nn.Module, base: nn.Module, example: Tensor, inputs: dict[str, Any]) -> Anatomy:
    if getattr(base, "config", None) is None or getattr(base.config, "is_encoder_decoder", False):
        raise ValueError(
            f"{type(model).__name__} is not split: expected one stack of layers, no encoder and decoder"
        )
    started, ran, outcome = _run(model, base, example, inputs)
    stacks = {
        name: module
        for name, module in base.named_modules()
        if isinstance(module, nn.ModuleList) and f"{name}.0" in ran
    }
    if not stacks or outcome is None:
        raise ValueError(
            f"{type(model).__name__} is not split: its forward calls no base model with a list of layers"
        )
    path = max(
        stacks, key=lambda name: sum(parameter.numel() for parameter in stacks[name].parameters())
    )
    names = [f"{path}.{index}" for index in range(len(stacks[path]))]
    if [name for name in started if name in names] != names:
        raise ValueError(
            f"{type(model).__name__} is not split: {path} do not run once each and in order"
        )

    x, norms, pooler = ran[names[-1]].output, [], None
    for name in started[started.index(names[-1]) + 1 :]:
        if ran[name].input is x and not name.startswith(
            (f"{names[-1]}.", *(f"{norm}." for norm in norms))
        ):
            if equal(ran[name].output, outcome.get("pooler_output")) and _last(name) == "pooler":
                pooler = name
                break
            norms.append(name)
            x = ran[name].output
    if not equal(x, outcome.get("last_hidden_state")):
        raise ValueError(
            f"{type(model).__name__} is not split: what runs behind its {path} is no chain of modules"
        )
    return Anatomy(path, [*stacks[path]], norms, pooler, type(outcome))


def _run(
    model: nn.Module, base: nn.Module, example: Tensor, inputs: dict[str, Any]
) -> tuple[list[str], dict[str, Ran], Any]:
    """Run the model once: the names of the base model's modules as they started, what each did, and
    its result.
    """
    started: list[str] = []
    ran: dict[str, Ran] = {}
    outcome = []

    def watch(name: str, module: nn.Module) -> Iterator[Any]:
        def end(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            ran[name] = Ran(
                name,
                [*args, *kwargs.values(), None][0],
                output[0] if isinstance(output, tuple) else output,
            )

        yield module.register_forward_pre_hook(lambda _module, _args: started.append(name))
        yield module.register_forward_hook(end, with_kwargs=True)

    hooks: list[Any] = [
        base.register_forward_hook(lambda _module, _args, output: outcome.append(output))
    ]
    for name, module in base.named_modules():
        hooks += watch(name, module) if name else ()
    try:
        with evaluating(model), torch.no_grad():
            model(example, **inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return started, ran, outcome[0] if len(outcome) == 1 else None


def _prefix_tokens(base: Any) -> int:
    embeddings = getattr(base, "embeddings", None)
    tokens = (
        getattr(embeddings, name, None)
        for name in ("cls_token", "distillation_token", "register_tokens")
    )
    return sum(token.shape[1] for token in tokens if isinstance(token, Tensor) and token.ndim == 3)
