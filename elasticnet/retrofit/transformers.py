"""Splits transformers models of one stack of layers: ViT, encoders such as BERT, decoders.

Their forwards branch on their inputs, so nothing is traced. The stem runs the base model's own
forward up to its layers and notes what each layer would have been given (masks, positions, rotary
embeddings). The head runs the model's own forward with a stand-in where the base model was. Both
are shells: new objects around the model's own modules.
"""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from elasticnet._compare import same_bits
from elasticnet.retrofit.anatomy import (
    POOLINGS,
    TOKENS,
    Anatomy,
    LayerKind,
    anatomy_of,
    without_cache,
)
from elasticnet.retrofit.kept_attributes import attributes_put_back
from elasticnet.retrofit.parts import PART_ERRORS, Split, verify, with_copies_if_needed
from elasticnet.retrofit.router_loss import RouterLoss, has_router_loss
from elasticnet.retrofit.transformers_source import transformers_source
from elasticnet.wrapper import evaluating

__all__ = ["RouterLoss", "split"]

logger = logging.getLogger(__name__)

# what a net returns of a model's result, the first found
RESULTS = ("logits", "last_hidden_state", "pooler_output")
# inputs of a base model that the stem does not take
REFUSED_INPUTS = ("past_key_values", "use_cache", "kwargs")
LABELS_REMEDY = (
    "the net returns predictions and no loss. Give the labels to the objective: "
    "ElasticObjective(net, task_loss, ...)(ids, labels)"
)
# what the model has and the net has not, with what to do instead
REFUSALS = {
    "generate": (
        "the net keeps no cache. elasticnet.retrofit.to_model(net, depth) returns an ordinary "
        "model of any depth, which has generate"
    ),
    "save_pretrained": (
        "elasticnet.save writes one file for all depths, and "
        "elasticnet.retrofit.to_model(net, depth) returns an ordinary model, which has "
        "save_pretrained"
    ),
    "resize_token_embeddings": (
        "resize them in the model, before the split: the parts hold the embeddings as they are"
    ),
}
EMBEDDINGS = "inputs_embeds"
MASK = "attention_mask"
PIXELS = "pixel_values"
SOUNDS = ("input_values", "input_features")  # the main input of models that hear
PREFIX_TOKENS = ("cls_token", "class_embedding", "distillation_token", "register_tokens")


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


def split(model: nn.Module, example: Tensor, *, output: str | None = None, **inputs: Any) -> Split:
    """Take apart a transformers model into stem, layers and head; the model stays as it is.

    The wrapped net is called as `net(ids, attention_mask=mask)`, with any inputs of the model but
    labels and caches, and returns one tensor.

    Args:
        model: A transformers model.
        example: Token ids (b, n) or pixels (b, c, h, w).
        output: Which entry of the model's result the net returns; None means its logits, or else
            its last hidden state.
        **inputs: More inputs to prove the parts with, such as attention_mask. The parts are proved
            without them, too.

    Returns:
        The parts, proved to give the model's own output.

    Raises:
        ValueError: The model is not one stack of layers (an encoder with a decoder, say), or the
            parts do not reproduce it; the message says why.

    Example:
        `net = split(bert, ids, attention_mask=mask).wrap()`
    """
    if not hasattr(model, "base_model") or not hasattr(model, "config"):
        raise ValueError(
            f"{type(model).__name__} is not a transformers model: expected one with a base_model"
        )
    with attributes_put_back(model):
        with _returning_mappings(model):
            parts = _split(model, example, output, inputs)
        source = transformers_source(
            model,
            stem=parts.stem,
            head=parts.head,
            layers=parts.blocks,
            example=example,
            inputs=inputs,
        )
        return parts._replace(source=source)


@contextmanager
def _returning_mappings(model: Any) -> Generator[None, None, None]:
    """Let a model return results with names inside a `with` block, whatever its config says."""
    configs: dict[int, Any] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        if getattr(config, "return_dict", None) is False:
            configs[id(config)] = config
    for config in configs.values():
        config.return_dict = True
    try:
        yield
    finally:
        for config in configs.values():
            config.return_dict = False


def _split(model: nn.Module, example: Tensor, output: str | None, inputs: dict[str, Any]) -> Split:
    """The parts of a model around its base model, proved."""
    anatomy = anatomy_of(model, example, inputs)
    base = anatomy.base
    _warn_of_router_loss(model, base)
    head = HiddenStateHead(model, anatomy, output)
    stem = LayerInputs(anatomy)
    with evaluating(model), evaluating(stem), torch.no_grad():
        stem.takes_last_depth = _can_end_early(model, stem, example, inputs)
        features, context = stem(example, **inputs)
        head.try_ids(features, context)
    parts = Split(
        stem=stem,
        blocks=anatomy.layers,
        head=head,
        layout=anatomy.layout,
        prefix_tokens=_prefix_tokens(base) if anatomy.layout == TOKENS else 0,
        call_block=call_layer,
        head_skip="context" if head.takes_context else None,
        checkpoint_blocks=_recomputes_layers(base, anatomy.layers),
        mask_keyword=_mask_keyword(stem) if anatomy.layout == TOKENS else None,
        refusals={name: REFUSALS[name] for name in REFUSALS if hasattr(model, name)},
    )

    parts = with_copies_if_needed(parts, example)
    _prove(parts, model, anatomy, example, inputs)
    return parts


def _prove(
    parts: Split, model: nn.Module, anatomy: Anatomy, example: Tensor, inputs: Mapping[str, Any]
) -> None:
    """Prove that the parts give the model's own output, with and without further inputs."""
    head: Any = parts.head
    options = without_cache(model)

    def run_model(*args: Any, **kwargs: Any) -> Tensor:
        return head.chosen(model(*args, **kwargs, **options))

    try:
        verify(parts, model, example, call=run_model)
        if inputs:
            verify(parts, model, example, call=run_model, **inputs)
    except ValueError as error:
        hint = ""
        if anatomy.left_out:
            base_name = type(anatomy.base).__name__
            hint = f". The head lacks {', '.join(anatomy.left_out)} of what {base_name} returns"
        raise ValueError(f"{type(model).__name__} is not split: {error}{hint}") from error


def _warn_of_router_loss(model: Any, base: nn.Module) -> None:
    """Say what becomes of the loss that a mixture of experts adds to its own one, if it does."""
    if getattr(model.config, "output_router_logits", False) is not True:
        return
    remedy = "use output_router_logits=False, or compute it yourself"
    if has_router_loss(model, base):
        remedy = "add elasticnet.retrofit.transformers.RouterLoss(net), which computes it"
    logger.warning(
        "%s adds the loss of its routers to its own loss (output_router_logits=True). The net "
        "returns predictions and no loss: %s",
        type(model).__name__,
        remedy,
    )


def _can_end_early(
    model: nn.Module, stem: LayerInputs, example: Tensor, inputs: Mapping[str, Any]
) -> bool:
    """Whether the first layers are given the same when those behind them are left out."""
    try:
        _, of_all = stem(example, **inputs)
    except PART_ERRORS as error:
        reason = str(error).split("\n")[0]
        raise ValueError(
            f"{type(model).__name__} is not split: its forward does more between its layers than "
            f"hand on what they return ({type(error).__name__}: {reason})"
        ) from error
    for depth in range(1, len(of_all.calls)):
        try:
            _, of_first = stem(example, last_depth=depth, **inputs)
        except PART_ERRORS:  # its forward counts on so many layers
            return False
        if not same_bits(of_first.calls, of_all.calls[:depth]):
            return False
    return True


# --- stem


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
        self.base = _shell(base, replaced)
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
        x: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        last_depth: int | None = None,
        **inputs: Any,
    ) -> tuple[Tensor, LayerContext]:
        """Return what the first layer is given, and each layer's further arguments as context.

        Args:
            x: Token ids (b, n) or pixels (b, c, h, w).
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
                compute a loss.
        """
        inputs["attention_mask"] = attention_mask
        inputs["token_type_ids"] = token_type_ids
        inputs["position_ids"] = position_ids
        given = {name: value for name, value in inputs.items() if value is not None}
        if "labels" in given:
            raise TypeError(f"unexpected keyword argument 'labels': {LABELS_REMEDY}")
        for name in given:
            if name not in self.names:
                raise TypeError(
                    f"unexpected keyword argument {name!r}: "
                    f"expected some of {', '.join(self.names)}"
                )
        given[self.main] = x
        of_model = {**given}
        if self.caches:
            given["use_cache"] = False
        notes = self._notes_of_run(given, last_depth)
        return notes.x[0], LayerContext(calls=notes.calls[:last_depth], inputs=of_model)

    def _notes_of_run(self, given: Mapping[str, Any], last_depth: int | None) -> Notes:
        """What the probes note in one run up to the last depth."""
        if torch.compiler.is_compiling():
            # Compilers do not trace the making of modules, and drop what no layer uses.
            return _noted(self.base, self.notes, given)
        # Modules of its own for each run, so that threads may share a network.
        notes = Notes()
        all_probes: Any = self.base.get_submodule(self.path)
        probes = nn.ModuleList()
        for probe in list(all_probes)[:last_depth]:
            probes.append(_with_attributes(probe, notes=notes))
        return _noted(_shell(self.base, {self.path: probes}), notes, given)


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


def _with_attributes(module: nn.Module, **attributes: Any) -> nn.Module:
    """A new object of a module's class around its attributes, some of which are others."""
    copied = module.__class__.__new__(module.__class__)
    copied.__dict__ = {**module.__dict__, **attributes}
    return copied


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


# --- head


class HiddenStateHead(nn.Module):
    """The head: what a model does behind its layers.

    Final norm, pooler, and the model's own forward around its base model.

    Args:
        model: The model.
        anatomy: Its base model, which may be the model itself, and what runs behind the layers.
        output: Which entry of the result is returned; None means the first of `RESULTS`.
    """

    def __init__(self, model: nn.Module, anatomy: Anatomy, output: str | None) -> None:
        super().__init__()
        stand_in = HiddenStateBase(anatomy)
        is_base = model is anatomy.base
        if is_base:
            self.model: nn.Module = stand_in
        else:
            shell: Any = _shell(model, {anatomy.base_path: stand_in})
            # the model's config may say otherwise, see `_returning_mappings`
            shell.config = copy.copy(shell.config)
            shell.config.return_dict = True
            self.model = shell
        self.main = str(getattr(model, "main_input_name", "input_ids"))
        self.output = output
        parameters = inspect.signature(model.forward).parameters
        self.names = list(parameters)
        # Models that look at the ids themselves (for the last token that is no padding, say) get
        # them, and the features as embeddings, which the stand-in takes.
        self.takes_embeddings = not is_base and EMBEDDINGS in parameters
        self.takes_ids = self.takes_embeddings
        takes_mask = MASK in parameters and self.main != PIXELS
        self.takes_context = not is_base and (self.takes_embeddings or takes_mask)

    def forward(self, features: Tensor, context: LayerContext | None = None) -> Tensor:
        """Return the model's output for the features of any layer.

        Args:
            features: Hidden states (b, n, c).
            context: What the stem prepared, where the head takes it: the model's own forward may
                need the ids or the mask.
        """
        inputs: dict[str, Any] = {}
        if context is not None:
            for name, value in context.inputs.items():
                if name in self.names:
                    inputs[name] = value
        if not self.takes_embeddings:
            inputs[self.main] = features
        else:
            inputs[EMBEDDINGS] = features
            if not self.takes_ids:
                inputs.pop(self.main, None)
        return self.chosen(self.model(**inputs))

    def try_ids(self, features: Tensor, context: LayerContext) -> None:
        """Do without the ids from now on if the model refuses them beside embeddings.

        Args:
            features: Hidden states (b, n, c).
            context: What the stem prepared.
        """
        if not self.takes_ids:
            return
        try:
            self(features, context)
        except ValueError:
            self.takes_ids = False

    def chosen(self, result: Any) -> Tensor:
        """Return the one tensor of a model's result that the net returns.

        Args:
            result: What the model returned, a mapping.

        Raises:
            ValueError: It has no such entry.
        """
        candidates = RESULTS if self.output is None else (self.output,)
        for name in candidates:
            if result.get(name) is not None:
                return result[name]
        raise ValueError(f"output {self.output!r}: the model's result has {', '.join(result)}")


class HiddenStateBase(nn.Module):
    """Stands where a base model stood: its last steps alone, on features instead of the input.

    Args:
        anatomy: The base model, and what runs behind its layers.
    """

    def __init__(self, anatomy: Anatomy) -> None:
        super().__init__()
        self.result_class = anatomy.result
        self.norm_names = [_last_name(path) for path in anatomy.norms]
        self.pooling = anatomy.pooler
        # under the last part of their paths, which are the model's own names
        for path in anatomy.behind:
            self.add_module(_last_name(path), anatomy.base.get_submodule(path))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return a result of the base model's class.

        Args:
            *args: The features as the first one, where they stand for the input.
            **kwargs: `inputs_embeds` holds the features, if given; else the first one does.
        """
        x = kwargs.get("inputs_embeds")
        if x is None:
            x = [*args, *kwargs.values()][0]
        for name in self.norm_names:
            x = self.get_submodule(name)(x)
        if self.pooling is None:
            return self.result_class(last_hidden_state=x)
        pooled = POOLINGS[self.pooling.tokens](x)
        if self.pooling.path is not None:
            pooled = self.get_submodule(_last_name(self.pooling.path))(pooled)
        return self.result_class(last_hidden_state=x, pooler_output=pooled)


def _last_name(path: str) -> str:
    return path.rpartition(".")[2]


def _shell(module: nn.Module, replaced: Mapping[str, nn.Module | None]) -> nn.Module:
    """A new object of a module's class around its very parameters and modules.

    Others stand in the places that `replaced` names; None leaves a place empty.
    """
    children: dict[str, nn.Module | None] = dict(module.__dict__["_modules"])
    # what lies deeper, by the name of the submodule that holds it
    inner: dict[str, dict[str, nn.Module | None]] = {}
    for path, other in replaced.items():
        name, _, rest = path.partition(".")
        if rest:
            inner.setdefault(name, {})[rest] = other
        else:
            children[name] = other
    for name, others in inner.items():
        children[name] = _shell(module.get_submodule(name), others)
    return _with_attributes(module, _modules=children)


# --- what the base model says of itself


def _recomputes_layers(base: Any, layers: Sequence[nn.Module]) -> bool:
    """Whether a base model computes its layers again in the backward pass by its own forward.

    Most models leave that to the layers, which have a switch of their own then and go on with it.
    """
    if any(_is_checkpointing(layer) for layer in layers):
        return False
    return any(_is_checkpointing(module) for module in base.modules())


def _is_checkpointing(module: nn.Module) -> bool:
    return getattr(module, "gradient_checkpointing", False) is True


def _mask_keyword(stem: LayerInputs) -> str | None:
    """The input that says which tokens count; the mask of a sound is about its samples instead."""
    if MASK not in stem.names or stem.main in SOUNDS:
        return None
    return MASK


def _prefix_tokens(base: Any) -> int:
    """How many tokens the embeddings put before the grid of an image."""
    embeddings = getattr(base, "embeddings", None)
    count = 0
    for name in PREFIX_TOKENS:
        token = getattr(embeddings, name, None)
        if not isinstance(token, Tensor):
            continue
        if token.ndim == 3:  # (1, n, c)
            count += token.shape[1]
        else:  # (c), or (1, c)
            count += 1
    return count
