"""The stem of a transformers model: what its layers are given; and the call of a layer with it."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from elasticnet.retrofit.transformers.layer_list import Anatomy, LayerKind
from elasticnet.retrofit.transformers.shells import shell_of, with_attributes

# inputs of a base model that the stem does not take
REFUSED_INPUTS = ("past_key_values", "use_cache", "kwargs")
NO_CACHE = (
    "the net keeps no cache. elasticnet.retrofit.to_model(net, depth) returns an ordinary model of "
    "any depth, which keeps one"
)
# what models take and the net does not, with what to do instead
INPUT_REMEDIES = {
    "labels": (
        "the net returns predictions and no loss. Give the labels to the objective: "
        "ElasticObjective(net, task_loss, ...)(ids, labels)"
    ),
    "use_cache": NO_CACHE,
    "past_key_values": NO_CACHE,
    "output_hidden_states": (
        "the net returns one tensor. net(x, taps=net.taps).features are the features of all taps"
    ),
    "return_dict": (
        "the net returns one tensor, which split(..., output=name) chooses from the model's result"
    ),
}
EMBEDDINGS = "inputs_embeds"


class LayerCall(NamedTuple):
    """What a layer is given beside the hidden states.

    Attributes:
        args: Its further positional arguments.
        kwargs: Its keyword arguments.
        layerdrop: The probability with which training leaves it out.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    layerdrop: float


class Handed(NamedTuple):
    """Stands for what the layer before returned beside the hidden states.

    Attributes:
        place: Its place in the tuple that this layer returned.
    """

    place: int


class LayerContext(NamedTuple):
    """What the stem prepares for the layers, and what one hands to the next.

    Attributes:
        calls: What each layer is given.
        inputs: The model's inputs by name, for the head.
        returned: What the layer before returned.
    """

    calls: Sequence[LayerCall]
    inputs: Mapping[str, Any]
    returned: Sequence[Any] = ()


class LayerInputs(nn.Module):
    """The stem: a base model with probes in the place of its layers.

    The base model's own forward runs to its end, on parts that cost next to nothing: probes note
    what the layers would have been given, and what the head has behind the layers hands on x.

    Args:
        anatomy: The base model, and where its layers are.

    Attributes:
        takes_last_depth: Whether a pass says how many layers it will run, so that the others need
            not be prepared.
    """

    takes_last_depth = True

    def __init__(self, anatomy: Anatomy) -> None:
        super().__init__()
        base = anatomy.base
        self.notes = Notes()
        probes: list[LayerProbe] = []
        for layer, kind in zip(anatomy.layers, anatomy.kinds, strict=True):
            probes.append(LayerProbe(layer, kind, self.notes))
        replaced: dict[str, nn.Module | None] = {anatomy.path: nn.ModuleList(probes)}
        for name in anatomy.only_behind:
            replaced[name] = PassThrough()
        self.base = shell_of(base, replaced)
        self.path = anatomy.path
        layerdrop = _switch_off_layerdrop(self.base, anatomy.path)
        for probe in probes:
            # A layer that hands on more than x cannot be left out: the next one needs it.
            probe.layerdrop = 0.0 if probe.hands_on else layerdrop
        self.main = str(getattr(base, "main_input_name", "input_ids"))
        parameters = list(inspect.signature(base.forward).parameters)
        not_further = (self.main, *REFUSED_INPUTS)
        self.names = [name for name in parameters if name not in not_further]
        self.caches = "use_cache" in parameters

    def forward(
        self,
        x: Tensor | None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        last_depth: int | None = None,
        **inputs: Any,
    ) -> tuple[Tensor, LayerContext]:
        """Return what the first layer is given, and each layer's further arguments as context.

        Args:
            x: Token ids (b, n) or pixels (b, c, h, w); None where `inputs_embeds` stand for them.
            attention_mask: As the model takes it.
            token_type_ids: As the model takes them.
            position_ids: As the model takes them.
            last_depth: How many layers the pass will run, from 1; None means all.
            **inputs: Any other input of the model. The three above are named, because the wrapper
                hands on what a stem names.

        Returns:
            The hidden states (b, n, c), and what each layer is given beside them.

        Raises:
            TypeError: The model has no such input, or it is one that would make it cache or
                compute a loss; or there are ids and embeddings.
        """
        inputs["attention_mask"] = attention_mask
        inputs["token_type_ids"] = token_type_ids
        inputs["position_ids"] = position_ids
        given = {name: value for name, value in inputs.items() if value is not None}
        for name in given:
            if name not in self.names:
                remedy = INPUT_REMEDIES.get(name, f"expected some of {', '.join(self.names)}")
                raise TypeError(f"unexpected keyword argument {name!r}: {remedy}")
        if EMBEDDINGS in given and x is not None:
            raise TypeError(
                f"{EMBEDDINGS} beside ids: expected None in the place of the ids, as in "
                f"net(None, {EMBEDDINGS}=embeddings)"
            )
        given[self.main] = x
        model_inputs = {**given}
        if self.caches:
            given["use_cache"] = False
        notes = self._notes_of_run(given, last_depth)
        context = LayerContext(calls=notes.calls[:last_depth], inputs=model_inputs)
        return notes.x[0], context

    def _notes_of_run(self, given: Mapping[str, Any], last_depth: int | None) -> Notes:
        """What the probes note in one run up to the last depth."""
        if torch.compiler.is_compiling():
            # Compilers do not trace the making of modules, and drop what no layer uses.
            return _noted(self.base, self.notes, given)
        # Modules of its own for each run, so that threads may share a network.
        notes = Notes()
        all_probes = self.base.get_submodule(self.path)
        probes: dict[str, nn.Module] = {}
        for name, probe in islice(all_probes.named_children(), last_depth):
            probes[name] = with_attributes(probe, notes=notes)
        probes_of_run = with_attributes(all_probes, _modules=probes)
        return _noted(shell_of(self.base, {self.path: probes_of_run}), notes, given)


def _noted(base: nn.Module, notes: Notes, given: Mapping[str, Any]) -> Notes:
    """What the probes in a base model, which write to `notes`, note in one run."""
    notes.clear()
    base(**given)
    noted = Notes()
    noted.x = notes.x
    noted.calls = notes.calls
    notes.clear()
    return noted


class Notes:
    """Where the probes of one run write.

    Attributes:
        x: The hidden states that came to each layer.
        calls: What each layer would have been given besides.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget the last run."""
        self.x: list[Any] = []
        self.calls: list[LayerCall] = []


class NotOfProbe(AttributeError):
    """A base model reads something of a layer that its probe has not."""


class LayerProbe(nn.Module):
    """Stands where a layer stood: notes its arguments and hands x on.

    It answers for the layer's plain attributes, which some base models read.

    Args:
        layer: The layer.
        kind: How it is called, and what it returns.
        notes: Where it writes.
    """

    def __init__(self, layer: nn.Module, kind: LayerKind, notes: Notes) -> None:
        super().__init__()
        for name, value in vars(layer).items():
            is_own = name.startswith("_") or name == "training"
            if not is_own and isinstance(value, (str, int, float)):
                self.__dict__[name] = value
        self.x_name = kind.x_name
        self.is_given = kind.is_given
        self.hands_on = kind.is_given is not None and any(kind.is_given[1:])
        self.layerdrop = 0.0
        self.notes = notes

    def __getattr__(self, name: str) -> Any:
        """Say what a base model reads of a layer, whose modules a probe has not."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            raise NotOfProbe(f"its forward reads {name!r} of its layers") from None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Note the arguments of a layer.

        Args:
            *args: The layer's positional arguments.
            **kwargs: The layer's keyword arguments.

        Returns:
            The hidden states, as they came; in a tuple with what the layer returns besides, if it
            returns one.
        """
        x = args[0] if args else kwargs.pop(self.x_name)
        self.notes.x.append(x)
        call = LayerCall(args=args[1:], kwargs=kwargs, layerdrop=self.layerdrop)
        self.notes.calls.append(call)
        if self.is_given is None:
            return x
        returned: list[Any] = [x]
        for place in range(1, len(self.is_given)):
            returned.append(Handed(place) if self.is_given[place] else None)
        return tuple(returned)


class PassThrough(nn.Module):
    """Stands in the stem where a module stood that runs behind the layers: the head has it."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the first argument.

        Args:
            x: The hidden states.
            *args: Ignored.
            **kwargs: Ignored.
        """
        return x


# --- blocks


def call_layer(
    block: nn.Module, x: Any, context: LayerContext, index: int
) -> tuple[Any, LayerContext]:
    """Call a layer with what the stem prepared for it, and what the layer before returned.

    Args:
        block: The layer.
        x: The hidden states (b, n, c).
        context: What the stem prepared.
        index: The layer's place, from 0. One behind the last one known, in a network that has
            grown, gets the last one's arguments.

    Returns:
        The hidden states, and the context of the next layer.
    """
    call = context.calls[min(index, len(context.calls) - 1)]
    if block.training and call.layerdrop > 0.0 and torch.rand([]) < call.layerdrop:
        return x, context
    args = [_value_of(value, context.returned) for value in call.args]
    kwargs = {name: _value_of(value, context.returned) for name, value in call.kwargs.items()}
    output: Any = block(x, *args, **kwargs)
    if not isinstance(output, (tuple, list)):
        return output, context
    returned: list[Any] = [*output]
    return returned[0], context._replace(returned=returned)


def _value_of(argument: Any, returned: Sequence[Any]) -> Any:
    """An argument, or in the place of a `Handed` what the layer before returned."""
    return returned[argument.place] if isinstance(argument, Handed) else argument


def _switch_off_layerdrop(base: nn.Module, path: str) -> float:
    """Let a shell run all its layers in training, too; return with what probability it did not.

    `call_layer` leaves layers out instead: the probes of all of them must be called.
    """
    probability = 0.0
    module: Any = base
    for name in ("", *path.split(".")[:-1]):
        module = module.get_submodule(name)
        config: Any = getattr(module, "config", None)
        if isinstance(getattr(module, "layerdrop", None), float):
            probability = module.layerdrop
            module.layerdrop = 0.0
        elif isinstance(getattr(config, "layerdrop", None), float):
            probability = config.layerdrop
            module.config = copy.copy(config)
            module.config.layerdrop = 0.0
    return probability
