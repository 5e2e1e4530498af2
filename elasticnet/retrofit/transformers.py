"""Splits transformers models of one stack of layers: ViT, encoders such as BERT, decoders.

Their forwards branch on their inputs, so nothing is traced. The stem runs the base model's own
forward up to its layers and notes what each layer would have been given (masks, positions, rotary
embeddings). The head runs the model's own forward with a stand-in where the base model was. Both
are shells: new objects around the model's own modules.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from elasticnet._compare import same_bits
from elasticnet.retrofit.graph import call_with_arguments
from elasticnet.retrofit.kept_attributes import attributes_put_back
from elasticnet.retrofit.parts import PART_ERRORS, Split, verify
from elasticnet.retrofit.transformers_source import transformers_source
from elasticnet.wrapper import evaluating

RESULTS = ("logits", "last_hidden_state")  # what a net returns of a model's result, the first found
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
PREFIX_TOKENS = ("cls_token", "distillation_token", "register_tokens")


class LayerCall(NamedTuple):
    """What a layer would have been given.

    Attributes:
        x: Its first argument, the hidden states.
        args: Its further positional arguments.
        kwargs: Its keyword arguments.
    """

    x: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


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
    base: Any = getattr(model, "base_model", None)
    if base is None or not hasattr(model, "config"):
        raise ValueError(
            f"{type(model).__name__} is not a transformers model: expected one with a base_model"
        )
    with attributes_put_back(model):
        with _returning_mappings(model):
            parts = _split(model, base, example, output, inputs)
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


def _split(
    model: nn.Module, base: nn.Module, example: Tensor, output: str | None, inputs: dict[str, Any]
) -> Split:
    """The parts of a model around its base model, proved."""
    anatomy = _anatomy(model, base, example, inputs)
    head = HiddenStateHead(model, base, anatomy, output)
    stem = LayerInputs(base, anatomy)
    with evaluating(model), evaluating(stem), torch.no_grad():
        stem.takes_last_depth = _can_end_early(stem, example, inputs)
    parts = Split(
        stem=stem,
        blocks=anatomy.layers,
        head=head,
        layout="b n c",
        prefix_tokens=_prefix_tokens(base),
        call_block=call_with_arguments,
        head_skip="input" if head.takes_embeddings else None,
        checkpoint_blocks=_recomputes_layers(base, anatomy.layers),
        refusals={name: REFUSALS[name] for name in REFUSALS if hasattr(model, name)},
    )

    def run_model(*args: Any, **kwargs: Any) -> Tensor:
        return head.chosen(model(*args, **kwargs))

    verify(parts, model, example, call=run_model)
    if inputs:
        verify(parts, model, example, call=run_model, **inputs)
    return parts


def _can_end_early(stem: LayerInputs, example: Tensor, inputs: Mapping[str, Any]) -> bool:
    """Whether the first layers are given the same when those behind them are left out."""
    _, of_all = stem(example, **inputs)
    for depth in range(1, len(of_all)):
        try:
            _, of_first = stem(example, last_depth=depth, **inputs)
        except PART_ERRORS:  # its forward counts on so many layers
            return False
        if not same_bits(of_first, of_all[:depth]):
            return False
    return True


# --- stem


class LayerInputs(nn.Module):
    """The stem: a base model with probes in the place of its layers.

    The base model's own forward runs to its end, on parts that cost next to nothing: probes note
    what the layers would have been given, and what the head has behind the layers hands on x.

    Args:
        base: The base model.
        anatomy: Where its layers are.

    Attributes:
        takes_last_depth: Whether a pass says how many layers it will run, so that the others need
            not be prepared.
    """

    takes_last_depth = True

    def __init__(self, base: nn.Module, anatomy: Anatomy) -> None:
        super().__init__()
        self.notes = Notes()
        probes = [LayerProbe(layer, self.notes) for layer in anatomy.layers]
        replaced: dict[str, nn.Module | None] = {anatomy.path: nn.ModuleList(probes)}
        for name in anatomy.behind:
            replaced[name] = PassThrough()
        self.base = _shell(base, replaced)
        self.path = anatomy.path
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
    ) -> tuple[Tensor, list[tuple[tuple[Any, ...], dict[str, Any]]]]:
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
            The hidden states (b, n, c), and a pair (args, kwargs) for each layer.

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
        if self.caches:
            given["use_cache"] = False
        calls = self._layer_calls(given, last_depth)
        return calls[0].x, [(call.args, call.kwargs) for call in calls]

    def _layer_calls(self, given: Mapping[str, Any], last_depth: int | None) -> list[LayerCall]:
        """What the first layers would have been given in one run, up to the last depth."""
        if torch.compiler.is_compiling():
            # Compilers do not trace the making of modules, and drop what no layer uses.
            return self._noted(self.base, self.notes, given)[:last_depth]
        # Modules of its own for each run, so that threads may share a network.
        notes = Notes()
        all_probes: Any = self.base.get_submodule(self.path)
        probes = nn.ModuleList()
        for probe in list(all_probes)[:last_depth]:
            probes.append(_with_attributes(probe, notes=notes))
        return self._noted(_shell(self.base, {self.path: probes}), notes, given)

    def _noted(self, base: nn.Module, notes: Notes, given: Mapping[str, Any]) -> list[LayerCall]:
        """What the probes in a base model note in one run."""
        calls: list[LayerCall] = []
        notes.calls = calls
        base(**given)
        notes.calls = []
        return calls


class Notes:
    """Where the probes of one run write.

    Attributes:
        calls: The calls of layers, in the order of the run.
    """

    def __init__(self) -> None:
        self.calls: list[LayerCall] = []


class LayerProbe(nn.Module):
    """Stands where a layer stood: notes its arguments and hands x on.

    It answers for the layer's plain attributes, which some base models read.

    Args:
        layer: The layer.
        notes: Where it writes.
    """

    def __init__(self, layer: nn.Module, notes: Notes) -> None:
        super().__init__()
        for name, value in vars(layer).items():
            is_own = name.startswith("_") or name == "training"
            if not is_own and isinstance(value, (str, int, float)):
                self.__dict__[name] = value
        self.notes = notes

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Note the arguments of a layer.

        Args:
            *args: The layer's positional arguments.
            **kwargs: The layer's keyword arguments.

        Returns:
            The hidden states, as they came.
        """
        x = args[0] if args else kwargs.pop("hidden_states")
        self.notes.calls.append(LayerCall(x=x, args=args[1:], kwargs=kwargs))
        return x


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


# --- head


class HiddenStateHead(nn.Module):
    """The head: what a model does behind its layers.

    Final norm, pooler, and the model's own forward around its base model.

    Args:
        model: The model.
        base: Its base model; may be the model itself.
        anatomy: What runs behind the layers.
        output: Which entry of the result is returned; None means the first of `RESULTS`.
    """

    def __init__(
        self, model: nn.Module, base: nn.Module, anatomy: Anatomy, output: str | None
    ) -> None:
        super().__init__()
        stand_in = HiddenStateBase(base, anatomy)
        if model is base:
            self.model: nn.Module = stand_in
        else:
            shell: Any = _shell(model, {_path_of(base, model): stand_in})
            # the model's config may say otherwise, see `_returning_mappings`
            shell.config = copy.copy(shell.config)
            shell.config.return_dict = True
            self.model = shell
        self.main = str(getattr(model, "main_input_name", "input_ids"))
        # Models that look at the ids themselves (for the last token that is no padding, say) get
        # them, and the features as embeddings, which the stand-in takes.
        parameters = inspect.signature(model.forward).parameters
        self.takes_embeddings = model is not base and "inputs_embeds" in parameters
        self.output = output

    def forward(self, features: Tensor, x: Tensor | None = None) -> Tensor:
        """Return the model's output for the features of any layer.

        Args:
            features: Hidden states (b, n, c).
            x: The model's input, where the head takes it.
        """
        if self.takes_embeddings:
            result = self.model(**{self.main: x, "inputs_embeds": features})
        else:
            result = self.model(**{self.main: features})
        return self.chosen(result)

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
        base: The base model.
        anatomy: What runs behind the layers.
    """

    def __init__(self, base: nn.Module, anatomy: Anatomy) -> None:
        super().__init__()
        self.result = anatomy.result
        self.norms = [_last_name(path) for path in anatomy.norms]
        self.pools = anatomy.pooler is not None
        # under the last part of their paths, which are the model's own names
        for path in anatomy.behind:
            self.add_module(_last_name(path), base.get_submodule(path))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return a result of the base model's class.

        Args:
            *args: The features as the first one, where they stand for the input.
            **kwargs: `inputs_embeds` holds the features, if given; else the first one does.
        """
        x = kwargs.get("inputs_embeds")
        if x is None:
            x = [*args, *kwargs.values()][0]
        for name in self.norms:
            x = self.get_submodule(name)(x)
        if self.pools:
            pooled = self.get_submodule("pooler")(x)
            return self.result(last_hidden_state=x, pooler_output=pooled)
        return self.result(last_hidden_state=x)


def _last_name(path: str) -> str:
    return path.rpartition(".")[2]


def _path_of(module: nn.Module, model: Any) -> str:
    """Where a module stands in a model."""
    for path, each in model.named_modules():
        if each is module:
            return path
    raise ValueError(f"{type(model).__name__} does not hold its base model as a module")


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


# --- anatomy


class Anatomy(NamedTuple):
    """The parts of a base model.

    Attributes:
        path: Where the list of its layers is.
        layers: The layers.
        norms: The paths of the modules that run behind the layers, one after the other.
        pooler: The path of the module that makes the pooled output of the last of them, if any.
        result: The class of what the base model returns.
    """

    path: str
    layers: Sequence[nn.Module]
    norms: Sequence[str]
    pooler: str | None
    result: type

    @property
    def behind(self) -> list[str]:
        """The paths of all that runs behind the layers."""
        return [*self.norms] if self.pooler is None else [*self.norms, self.pooler]


class Ran(NamedTuple):
    """A module that ran.

    Attributes:
        name: Its path.
        input: Its first input.
        output: What it returned, of a tuple the first entry.
    """

    name: str
    input: Any
    output: Any


class BaseRun(NamedTuple):
    """One run of a base model.

    Attributes:
        started: The paths of its modules, in the order in which they started.
        ran: What each did, by path; of one that ran more than once, the last time.
        outcome: What the base model returned; None unless it ran once.
    """

    started: list[str]
    ran: dict[str, Ran]
    outcome: Any


def _anatomy(model: nn.Module, base: Any, example: Tensor, inputs: Mapping[str, Any]) -> Anatomy:
    """Find the layers of a base model, and what runs behind them, in one run."""
    not_split = f"{type(model).__name__} is not split"
    config: Any = getattr(base, "config", None)
    if config is None or getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"{not_split}: expected one stack of layers, no encoder and decoder")
    run = _run(model, base, example, inputs)
    path = _path_of_layers(base, run)
    if path is None or run.outcome is None:
        raise ValueError(f"{not_split}: its forward calls no base model with a list of layers")
    layers = list(base.get_submodule(path))
    names = [f"{path}.{index}" for index in range(len(layers))]
    if [name for name in run.started if name in names] != names:
        raise ValueError(f"{not_split}: {path} do not run once each and in order")

    norms, pooler = _behind(run, last_layer=names[-1])
    last = run.ran[norms[-1] if norms else names[-1]]
    if not same_bits(last.output, run.outcome.get("last_hidden_state")):
        changes = _said_of_changes(base, path)
        raise ValueError(
            f"{not_split}: what runs behind its {path} is no chain of modules{changes}"
        )
    return Anatomy(path=path, layers=layers, norms=norms, pooler=pooler, result=type(run.outcome))


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


def _path_of_layers(base: Any, run: BaseRun) -> str | None:
    """Where the largest list of modules is whose first one ran."""
    sizes: dict[str, int] = {}
    for name, module in base.named_modules():
        if isinstance(module, nn.ModuleList) and f"{name}.0" in run.ran:
            sizes[name] = sum(parameter.numel() for parameter in module.parameters())
    return max(sizes, key=sizes.__getitem__) if sizes else None


def _behind(run: BaseRun, last_layer: str) -> tuple[list[str], str | None]:
    """The modules that each take what the one before gave, from the last layer on; the pooler."""
    norms: list[str] = []
    x = run.ran[last_layer].output
    for name in run.started[run.started.index(last_layer) + 1 :]:
        inside = any(name.startswith(f"{outer}.") for outer in (last_layer, *norms))
        if inside or run.ran[name].input is not x:
            continue
        output = run.ran[name].output
        is_pooled = same_bits(output, run.outcome.get("pooler_output"))
        if is_pooled and _last_name(name) == "pooler":
            return norms, name
        norms.append(name)
        x = output
    return norms, None


def _run(model: nn.Module, base: Any, example: Tensor, inputs: Mapping[str, Any]) -> BaseRun:
    """Run the model once and watch its base model."""
    started: list[str] = []
    ran: dict[str, Ran] = {}
    outcomes: list[Any] = []

    def watch_base(_module: nn.Module, _args: Any, output: Any) -> None:
        outcomes.append(output)

    hooks: list[Any] = [base.register_forward_hook(watch_base)]
    for name, module in base.named_modules():
        if name:
            hooks += _watch(name, module, started, ran)
    try:
        with evaluating(model), torch.no_grad():
            model(example, **inputs)
    finally:
        for hook in hooks:
            hook.remove()
    outcome = outcomes[0] if len(outcomes) == 1 else None
    return BaseRun(started=started, ran=ran, outcome=outcome)


def _watch(name: str, module: nn.Module, started: list[str], ran: dict[str, Ran]) -> list[Any]:
    """Note when a module starts and what it does; returns the hooks, to be removed."""

    def start(_module: nn.Module, _args: Any) -> None:
        started.append(name)

    def end(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        values = [*args, *kwargs.values()]
        ran[name] = Ran(
            name=name,
            input=values[0] if values else None,
            output=output[0] if isinstance(output, tuple) else output,
        )

    return [
        module.register_forward_pre_hook(start),
        module.register_forward_hook(end, with_kwargs=True),
    ]


def _recomputes_layers(base: Any, layers: Sequence[nn.Module]) -> bool:
    """Whether a base model computes its layers again in the backward pass by its own forward.

    Most models leave that to the layers, which have a switch of their own then and go on with it.
    """
    if any(_is_checkpointing(layer) for layer in layers):
        return False
    return any(_is_checkpointing(module) for module in base.modules())


def _is_checkpointing(module: nn.Module) -> bool:
    return getattr(module, "gradient_checkpointing", False) is True


def _prefix_tokens(base: Any) -> int:
    """How many tokens the embeddings put before the grid of an image."""
    embeddings = getattr(base, "embeddings", None)
    count = 0
    for name in PREFIX_TOKENS:
        token = getattr(embeddings, name, None)
        if isinstance(token, Tensor) and token.ndim == 3:  # (1, n, c)
            count += token.shape[1]
    return count
