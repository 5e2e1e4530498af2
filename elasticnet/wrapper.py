"""ElasticWrapper: the block loop that turns a sequential-block network into an elastic one."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from elasticnet._modules.copies import detached_copy
from elasticnet._modules.evaluating import evaluating
from elasticnet._modules.unwrapping import check_not_sharded, unwrapped
from elasticnet._net.additions import additions_to, around_forward, shallow_copy
from elasticnet._net.checks import (
    Rejection,
    RejectionError,
    check_adapter_depths,
    check_containers,
    check_context_is_read,
    check_is_no_tuple,
    check_modules,
    check_not_overwritten_since,
    check_number_of_blocks,
    check_predictions,
    check_settings,
    features_and_context,
    is_plain_tuple,
    listed,
    refuse_unexpected,
    rejection_message,
    tap_reports,
    warn_of_statistics,
)
from elasticnet._net.growing import identity_blocks, prove_same_function
from elasticnet._net.head_statistics import call_head, statistics_by_depth, write_into_head
from elasticnet._net.hooks import NetHook, check_backward_hooks
from elasticnet._net.in_place_writes import GuardedTensors
from elasticnet._net.nests import copied, in_own_containers
from elasticnet._net.plain_sequence import plain_sequence
from elasticnet._net.stem_arguments import StemArguments, read_stem_arguments
from elasticnet.parameter_groups import (
    LayerMatcher,
    ParameterGroups,
    layer_matcher,
    no_weight_decay,
)
from elasticnet.recompute import recomputed
from elasticnet.taps import TapReport, Taps, resolve_depth, resolve_depths, resolve_taps

CallBlock = Callable[[nn.Module, Any, Any, int], tuple[Any, Any]]


@dataclass(eq=False)
class PassState:
    """Where a pass stands: what the blocks so far have computed, and what the next ones need.

    A pass changes its state as it goes, so that each block's features are freed as soon as the next
    block has read them. A state from `ElasticWrapper.run_to` does not change any more.

    Attributes:
        depth: How many blocks have run.
        features: What the last of them returned; at depth 0 what the stem did.
        context: What the next block gets beside the features.
        skip: The input or the stem's output, if the head takes one of them beside the features.
        guarded: Notices writes in place, see `GuardedTensors`. The states of one call share it;
            `protected` starts a new one.
    """

    depth: int
    features: Any
    context: Any
    skip: Any
    guarded: GuardedTensors

    def copy(self) -> PassState:
        """Return a state of its own with the same tensors and the same `guarded`."""
        return PassState(self.depth, self.features, self.context, self.skip, self.guarded)

    def protected(self) -> PassState:
        """Return a state with the same tensors, and a new `guarded` that holds all of them."""
        guarded = GuardedTensors()
        depth = self.depth
        guarded.guard_input(self.features, name=f"the features of the state at depth {depth}")
        guarded.guard_input(self.context, name=f"the context of the state at depth {depth}")
        guarded.guard_input(self.skip, name=f"what the head takes beside the features at {depth}")
        return PassState(self.depth, self.features, self.context, self.skip, guarded)


class Origin(NamedTuple):
    """How a network was built.

    Attributes:
        architecture: The name under which its builder is registered, see `elasticnet.registry`.
        arguments: The builder's keyword arguments. A truncated or grown network keeps the
            arguments of the network that it was made from.
    """

    architecture: str
    arguments: dict[str, Any]


class ElasticWrapper(nn.Module):
    """A stem, blocks and one shared head, with a prediction at every tap: run it at any depth.

    Depths count blocks and start at 1; -1 is the deepest. A tap is a depth that carries a
    prediction. In eval mode three ways give the same prediction at depth d, bit for bit:
    `net(x, depth=d)`, `net(x, taps=net.taps)` and `net.truncate(d)(x)`.

    The context is what a block passes on beside its features. It starts as what the stem returns
    beside its features, or else as the dict of all keyword arguments of `net(x, **keywords)`.
    `call_block` takes and returns it, and `head_skip="context"` gives it to the head. The stem
    itself gets those keyword arguments that its forward names. `depth` and `taps` are the net's own
    arguments and never part of the context.

    State dict keys: `stem.*`, `blocks.{index from 0}.*`, `head.*`, `adapters.{depth}.*`, and
    `head_statistics.{depth}.*` after `elasticnet.recalibration.recalibrate` if the head has
    BatchNorm.

    Args:
        body_blocks: The blocks. Each maps features to features, or to a tuple whose first entry is
            the features. Anything that is no plain tuple is the features as it is: a list, a dict,
            a named tuple, a `PackedSequence`.
        shared_head: Maps features to a prediction; one module for all taps. If it has the attribute
            `takes_all_taps = True`, each pass calls it once: it maps the tuple of the features of
            several taps to the tuple of their predictions.
        stem: The module before the first block. It may return `(features, context)` if
            `call_block` or `head_skip="context"` is given. If it has the attribute
            `takes_last_depth = True`, it gets the keyword argument `last_depth`: how many blocks
            the pass can run, so that it prepares no more than these need. None: the first block
            takes the input.
        taps: The depths that carry a prediction; the deepest must be among them. None: every depth.
        adapters: `{depth: module}`: the module maps the features of the tap at that depth to what
            the head takes.
        head_skip: "stem" calls `head(features, stem_output)`, "input" calls `head(features, x)`,
            "context" calls `head(features, context)` with the context behind the last block, None
            calls `head(features)`. A head that takes all taps gets a tuple of contexts, one for
            each tap.
        layout: What the axes of the features mean, for attention maps; see
            `elasticnet.distillation`.
        prefix_tokens: How many leading positions attention maps leave out (class and register
            tokens); needs a layout with one position axis.
        call_block: `call_block(block, features, context, index) -> (features, context)` replaces
            the plain call of a block; `index` counts from 0.
        checkpoint_blocks: Whether training recomputes each block in the backward pass instead of
            keeping its activations.
        copy_features: Whether stem, blocks, adapters and head get copies. Needed if one of them
            changes in place what it is given, such as a head that begins with
            `nn.ReLU(inplace=True)`: without it, that is an error.
        mask_keyword: The keyword argument of `net(x, ...)` that says which positions count, such as
            "attention_mask": a mask as in `elasticnet.distillation`. Attention maps leave out the
            others. None: the net has no such argument.

    Attributes:
        taps: The depths that carry a prediction, sorted, the deepest last.
        origin: How a registered builder made this network. None: no registered builder made it.
        parameter_groups: What the model that this network was split from says of its parameters to
            optimisers. None: it was not split, or the model says nothing.
        keyword_names: The keyword arguments that a pass takes, if the stem makes the context of the
            blocks itself, as in networks that were split. None: those that the stem names, and any
            that `call_block` or the head may find in the context.
        split_from: What `elasticnet.retrofit` remembers of the model that it split this network
            from, for `elasticnet.retrofit.to_model`. None: it was not split.

    Raises:
        TypeError: A part is not a module, or `call_block` is a module; or the blocks are not
            listed, or the adapters are not given by depth.
        ValueError: `body_blocks` is empty, or a tap, an adapter's depth or `head_skip` is invalid,
            or the stem's forward has an argument called `depth` or `taps`, or has none called
            `last_depth` although the stem has `takes_last_depth`.

    Example:
        `net = ElasticWrapper([Block() for _ in range(5)], head, stem)`
    """

    accepts_loss_kwargs = False
    """For transformers' Trainer: a pass takes no `num_items_in_batch` to divide the loss by."""

    def __init__(
        self,
        body_blocks: Iterable[nn.Module],
        shared_head: nn.Module,
        stem: nn.Module | None = None,
        taps: Iterable[int] | None = None,
        adapters: Mapping[int, nn.Module] | None = None,
        head_skip: str | None = None,
        layout: str = "b c h w",
        prefix_tokens: int = 0,
        call_block: CallBlock | None = None,
        checkpoint_blocks: bool = False,
        copy_features: bool = False,
        mask_keyword: str | None = None,
    ) -> None:
        super().__init__()
        check_containers(body_blocks, adapters)
        blocks = list(body_blocks)
        adapters = dict(adapters or {})
        check_modules(blocks, shared_head, stem)
        check_settings(head_skip, call_block)
        self.taps = resolve_taps(taps, num_blocks=len(blocks))
        check_adapter_depths(adapters, self.taps)

        self.stem = stem
        self.blocks = nn.ModuleList(blocks)
        self.head = shared_head
        self.adapters = _module_dict(adapters)
        # What `elasticnet.recalibration` fills if there is BatchNorm in the head.
        self.head_statistics = nn.ModuleDict()
        self.head_skip = head_skip
        self.layout = layout
        self.prefix_tokens = prefix_tokens
        self.call_block = call_block
        self.checkpoint_blocks = checkpoint_blocks
        self.copy_features = copy_features
        self.mask_keyword = mask_keyword
        self.default_depth = self.taps[-1]
        self.origin: Origin | None = None
        self.keyword_names: frozenset[str] | None = None
        self.split_from: object | None = None
        self.parameter_groups: ParameterGroups | None = None
        self._stem_arguments = read_stem_arguments(stem)
        self._blocks_return_tuples = False  # set when a block runs, read by to_sequential
        self._skipped_blocks: frozenset[int] = frozenset()  # depths, see `skipping`

    # A part may write in place into what it is given. `GuardedTensors` notices that in what a later
    # part still needs. It is told of a tensor by `guard_input` (every later part may get it),
    # `guard_features` (the next part or two) or `guard` (none), and asked by `check_behind` after
    # each part and by `check_everything` at the end. Each method guards what it hands out:
    #
    # - every pass: its input, and the stem's output if the head takes it as its skip (`_run_stem`);
    # - with `checkpoint_blocks`: the features that the backward pass runs a block on again
    #   (`_guard_for_backward`);
    # - a pass over taps: what the head takes at each tap (`_guard_what_the_head_takes`), and each
    #   prediction;
    # - a pass that rests at a depth: all of its state (`PassState.protected`).
    #
    # Nothing else is guarded: in a plain pass each block's features have one reader, which may
    # overwrite them.

    # --- a pass up to one depth

    if TYPE_CHECKING:
        # nn.Module types the call of every module as (...) -> Any.
        @overload
        def __call__(
            self, x: Any, depth: int | None = None, *, taps: None = None, **keywords: Any
        ) -> Any: ...
        @overload
        def __call__(
            self, x: Any, depth: None = None, *, taps: Iterable[int], **keywords: Any
        ) -> Taps: ...
        @overload
        def __call__(self, *inputs: Any, **keywords: Any) -> Any: ...  # as in net(x, **batch)
        def __call__(self, *inputs: Any, **keywords: Any) -> Any: ...

    def forward(
        self,
        x: Any,
        depth: int | None = None,
        *,
        taps: Iterable[int] | None = None,
        **keywords: Any,
    ) -> Any:
        """Return the prediction at one depth, or a `Taps` with those at several depths.

        `net(x, depth=d)` does not run the blocks behind depth d. `net(x, taps=net.taps)` runs all
        blocks once.

        Args:
            x: The input of the stem, or of the first block if there is no stem.
            depth: A tap of the net. None: the deepest tap, or inside `with net.at_depth(d)` the
                tap at depth d.
            taps: Taps of the net, or -1 for the deepest, instead of `depth`.
            **keywords: For the stem and `call_block`.

        Returns:
            The head's output at that depth. With `taps`, a `Taps`: the predictions at these taps
            and the features of all taps of the net.

        Raises:
            ValueError: A depth carries no tap or is named twice, `taps` is empty, or both `depth`
                and `taps` are given.
            TypeError: Neither the stem nor `call_block` takes a keyword argument.
            RuntimeError: The head rejects the features; the message names the depth.
        """
        if taps is not None:
            if depth is not None:
                raise ValueError(f"depth {depth!r} and taps {taps!r}: expected one of the two")
            return self._run_all_taps(x, resolve_depths(taps, self.taps), keywords)

        last_depth = self.default_depth if depth is None else resolve_depth(depth, self.taps)
        state = self._run_stem(x, last_depth, keywords)
        self._run_blocks(state, last_depth)
        (prediction,) = self._predict([state])
        return prediction

    def _run_blocks(self, state: PassState, last_depth: int) -> None:
        """Run the blocks behind a state, up to `last_depth`, and change the state."""
        recompute = self.checkpoint_blocks and self.training and torch.is_grad_enabled()
        blocks = islice(self.blocks, state.depth, last_depth)
        for depth, block in enumerate(blocks, start=state.depth + 1):
            if depth in self._skipped_blocks:
                state.depth = depth
                continue
            if recompute:
                self._guard_for_backward(state)
            features = self._copy_for_part(state.features)
            # The context is not copied: blocks may change it. Where the head reads it too, later
            # blocks have one of their own, see `_go_to_tap`.
            state.features, state.context = self._run_block(
                block, features, state.context, depth, recompute
            )
            state.depth = depth
            state.guarded.check_behind(f"block {depth} ({type(block).__name__})")

    def _guard_for_backward(self, state: PassState) -> None:
        """Guard the features at a state: the backward pass runs the next block on them again."""
        name = f"the features at depth {state.depth}, for the backward pass,"
        state.guarded.guard_features(state.features, name)

    def _run_block(
        self, block: nn.Module, features: Any, context: Any, depth: int, recompute: bool
    ) -> tuple[Any, Any]:
        """Return the features and the context behind a block."""
        if self.call_block is not None:
            call_block = self.call_block
            if recompute:
                call_block = recomputed(call_block, module=block)
            index = depth - 1  # call_block counts blocks from 0
            returned = call_block(block, features, context, index)
            return features_and_context(returned, source="call_block")

        run = recomputed(block, module=block) if recompute else block
        output = run(features)
        if is_plain_tuple(output):
            # Tuple in and tuple out is refused: only the first entry would go on.
            check_is_no_tuple(features, depth)
            self._blocks_return_tuples = True  # read by to_sequential
            return output[0], context
        return output, context

    def _copy_for_part(self, value: Any) -> Any:
        """Return a value as a part is given it: in lists and dicts of its own, which it may change.

        With `copy_features` the tensors are copies too, and the part may write into them.
        """
        if self.copy_features:
            return copied(value)
        return in_own_containers(value)

    # --- a pass over all taps

    def _run_all_taps(self, x: Any, depths: tuple[int, ...], keywords: dict[str, Any]) -> Taps:
        """Run all blocks once and predict at `depths`, sorted as `resolve_depths` returns them."""
        check_backward_hooks(self)
        state = self._run_stem(x, self.taps[-1], keywords)
        if self._head_takes_all_taps():
            outputs = self._predict_behind_the_last_block(state, depths)
        else:
            outputs = self._predict_at_each_tap(state, depths)
        # Also what `check_behind` does not look at: features of earlier taps, and predictions.
        state.guarded.check_everything(writer="the head, or a block behind,")
        return outputs

    def _predict_at_each_tap(self, state: PassState, depths: tuple[int, ...]) -> Taps:
        """Run the blocks, and call the head at each depth before the next block runs.

        That block could write into the features, and not all writes are noticed, see
        `GuardedTensors`.
        """
        features: list[Any] = []
        predictions: list[Any] = []
        for tap in self.taps:
            self._go_to_tap(state, tap)
            features.append(state.features)
            if tap in depths:
                (prediction,) = self._predict([state])
                state.guarded.guard(prediction, name=f"the prediction at depth {tap}")
                predictions.append(prediction)
        return Taps(depths, tuple(predictions), tuple(features))

    def _predict_behind_the_last_block(self, state: PassState, depths: tuple[int, ...]) -> Taps:
        """Run the blocks, and then call a head that takes all taps once."""
        features: list[Any] = []
        states: list[PassState] = []  # at `depths`
        for tap in self.taps:
            self._go_to_tap(state, tap)
            features.append(state.features)
            if tap in depths:
                states.append(state.copy())
        predictions = self._predict(states)
        return Taps(depths, predictions, tuple(features))

    def _go_to_tap(self, state: PassState, tap: int) -> None:
        """Run the blocks up to a tap, and guard what the head takes there."""
        comes_from_a_tap = state.depth > 0
        if comes_from_a_tap and self.head_skip == "context":
            # The head takes the context of that tap. What later blocks change is a copy.
            state.context = self._copy_for_part(state.context)
        self._run_blocks(state, tap)
        self._guard_what_the_head_takes(state)

    def _guard_what_the_head_takes(self, state: PassState) -> None:
        """Guard the features at a tap, and the context if the head takes it."""
        if self.head_skip == "context":
            name = f"the features or the context at depth {state.depth}"
            state.guarded.guard_features([state.features, state.context], name)
        else:
            name = f"the features at depth {state.depth}"
            state.guarded.guard_features(state.features, name)

    # --- the stem

    def _run_stem(
        self, x: Any, last_depth: int, keywords: dict[str, Any], compare_values: bool = False
    ) -> PassState:
        """Return the state at depth 0, of a pass that runs the blocks up to `last_depth`."""
        check_number_of_blocks(len(self.blocks), deepest_tap=self.taps[-1])
        guarded = GuardedTensors(compare_values)
        guarded.guard_input(x, name="the input")
        features, context = self._call_stem(x, last_depth, keywords)
        guarded.check_behind("the stem")

        skip = None
        if self.head_skip == "input":
            skip = x
        if self.head_skip == "stem":
            skip = features
            guarded.guard_input(features, name="the stem's output")
        return PassState(depth=0, features=features, context=context, skip=skip, guarded=guarded)

    def _call_stem(self, x: Any, last_depth: int, keywords: dict[str, Any]) -> tuple[Any, Any]:
        """Return the features and the context for the first block.

        The stem gets the keyword arguments that its forward names. All of them are the context,
        unless the stem returns one of its own.
        """
        arguments = self._arguments_of_stem()
        self._refuse_what_no_part_gets(arguments.of_others(keywords))
        if self.stem is None:
            return x, keywords

        for_stem = arguments.of_stem(keywords, last_depth)
        output = self.stem(self._copy_for_part(x), **for_stem)
        if not is_plain_tuple(output):
            return output, keywords

        check_context_is_read(self._reads_context())
        # What the stem did not get does not stand in a context of its own either.
        refuse_unexpected(arguments.of_others(keywords))
        return features_and_context(output, source="the stem")

    def _reads_context(self) -> bool:
        """Return whether a part gets the context: the blocks by `call_block`, or the head."""
        return self.call_block is not None or self.head_skip == "context"

    def _refuse_what_no_part_gets(self, keywords: Mapping[str, Any]) -> None:
        """Raise if no part gets these keyword arguments, which the stem does not get.

        Asked before the stem runs: its error about a missing argument would hide a misspelt name.
        """
        if not self._reads_context():
            refuse_unexpected(keywords)

    def _arguments_of_stem(self) -> StemArguments:
        """Return what the stem takes; it is read again if the stem was replaced."""
        if not self._stem_arguments.belong_to(self.stem):  # as by `net.stem = another`
            self._stem_arguments = read_stem_arguments(self.stem)
        return self._stem_arguments

    # --- the head

    def _predict(self, states: Sequence[PassState]) -> tuple[Any, ...]:
        """Return the predictions at the depths of these states, by one call of the head.

        There is one state, unless the head takes all taps.
        """
        try:
            predictions = self._run_head(states)
        except torch.OutOfMemoryError:  # a RuntimeError too, but not one that an adapter mends
            raise
        except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
            features_by_depth = {state.depth: state.features for state in states}
            raise RejectionError(rejection_message(features_by_depth, error)) from error
        check_predictions(predictions, num_taps=len(states))
        guarded = states[-1].guarded
        if guarded.is_overwritten():  # asked first, because the name takes time
            guarded.check_behind(self._name_of_head_at(states))
        return predictions

    def _name_of_head_at(self, states: Sequence[PassState]) -> str:
        """Return what messages call the head where it is called for these states."""
        depths = [state.depth for state in states]
        has_adapter = any(str(depth) in self.adapters for depth in depths)
        part = "the head or its adapter" if has_adapter else "the head"
        return f"{part} at depth {listed(depths)}"

    def _run_head(self, states: Sequence[PassState]) -> Any:
        """Call the head once: with a tuple if it takes all taps, else with one tap's features."""
        if self._head_takes_all_taps():
            features = tuple(self._adapted(state) for state in states)
            skip = states[-1].skip  # the same at all taps
            if self.head_skip == "context":
                skip = tuple(state.context for state in states)
            inputs = self._head_inputs(features, skip)
            # One call has one set of statistics: the head's own.
            return call_head(self.head, statistics=None, inputs=inputs)

        (state,) = states
        features = self._adapted(state)
        skip = state.context if self.head_skip == "context" else state.skip
        statistics = self._statistics_at(state.depth)
        prediction = call_head(self.head, statistics, inputs=self._head_inputs(features, skip))
        return (prediction,)

    def _head_inputs(self, features: Any, skip: Any) -> tuple[Any, ...]:
        """Return what the head is called with: the skip only if the net has `head_skip`."""
        if self.head_skip is None:
            return (features,)
        return (features, self._copy_for_part(skip))

    def _adapted(self, state: PassState) -> Any:
        """Return what the head takes at a tap: its features, through its adapter if it has one."""
        features = self._copy_for_part(state.features)
        adapters = self.adapters
        name = str(state.depth)
        if name in adapters:
            return adapters[name](features)
        return features

    def _statistics_at(self, depth: int) -> nn.Module | None:
        """Return the statistics that the head's BatchNorm has at a depth; None: its own."""
        statistics = self.head_statistics
        name = str(depth)
        if name in statistics:
            return statistics[name]
        return None

    def _head_takes_all_taps(self) -> bool:
        """Return whether one call of the head gives the predictions at several taps."""
        return getattr(unwrapped(self.head), "takes_all_taps", False) is True

    # --- a pass that rests at a depth and goes on

    def run_to(self, x: Any, depth: int, **keywords: Any) -> PassState:
        """Run the blocks up to a depth and return what a later call needs to go on.

        `net.predict(state)` gives the prediction there, `net.continue_from(state, deeper)` runs the
        blocks behind it. No block runs twice, and every prediction is that of `net(x, depth=d)`,
        bit for bit in eval mode.

        Args:
            x: The input of the stem, or of the first block if there is no stem.
            depth: A tap of the net.
            **keywords: For the stem and `call_block`. A stem that takes `last_depth` gets the depth
                of the whole net, because the pass may go on.

        Returns:
            The state at that depth.

        Raises:
            ValueError: The depth carries no tap, or something would be left out, because these
                three methods do not call `net.forward`: a hook on the net, a replaced forward, or
                that of a subclass.
            RuntimeError: A part overwrites in place what the pass needs, see `copy_features`.

        Example:
            `state = net.run_to(x, 1); state = net.continue_from(state, 3); y = net.predict(state)`
        """
        self._check_nothing_is_left_out()
        last_depth = resolve_depth(depth, self.taps)
        state = self._run_stem(x, self.taps[-1], keywords)
        self._run_blocks(state, last_depth)
        return state.protected()  # No pass changes what the caller gets.

    def continue_from(self, state: PassState, depth: int) -> PassState:
        """Run the blocks behind a state, up to a deeper tap.

        The state that is given does not change: it can be used again.

        Args:
            state: From `run_to` or `continue_from`.
            depth: A tap of the net, deeper than the state.

        Returns:
            The state at that depth.

        Raises:
            ValueError: The depth carries no tap or is not deeper, a tensor of the state was
                overwritten since, or something would be left out as in `run_to`.
            RuntimeError: A block overwrites in place what the state holds, see `copy_features`.
        """
        self._check_nothing_is_left_out()
        last_depth = resolve_depth(depth, self.taps)
        if last_depth <= state.depth:
            raise ValueError(
                f"depth {last_depth}: the state is at depth {state.depth} already, and a pass goes "
                "on to deeper taps alone"
            )
        check_not_overwritten_since(state.guarded, state.depth)
        working = state.protected()  # The blocks must not overwrite what the given state holds.
        working.context = self._copy_for_part(state.context)  # They may change this one.
        self._run_blocks(working, last_depth)
        return working.protected()  # The result guards the new features.

    def predict(self, state: PassState) -> Any:
        """Return the prediction at the depth of a state.

        Args:
            state: From `run_to` or `continue_from`.

        Raises:
            ValueError: A tensor of the state was overwritten since, or something would be left out
                as in `run_to`.
            RuntimeError: The head rejects the features, or overwrites what the state holds.
        """
        self._check_nothing_is_left_out()
        check_not_overwritten_since(state.guarded, state.depth)
        (prediction,) = self._predict([state])
        return prediction

    def _check_nothing_is_left_out(self) -> None:
        """Raise if something sits around `net.forward`, which a pass in pieces does not call."""
        around = around_forward(self, plain_forward=ElasticWrapper.forward)
        if around:
            raise ValueError(
                f"run_to, continue_from and predict do not call net.forward, so that {around[0]} "
                "would be left out: put what it does into the stem or the head"
            )

    # --- other ways to call the net

    def forward_taps(self, x: Any, depths: Sequence[int] | None = None, **keywords: Any) -> Taps:
        """Return `net(x, taps=depths)`; None for `depths` means all taps of the net.

        Args:
            x: The input of the stem, or of the first block if there is no stem.
            depths: Taps of the net. None: all of them.
            **keywords: For the stem and `call_block`.

        Returns:
            The predictions at `depths` and the features of all taps.

        Raises:
            ValueError: A depth carries no tap or is named twice, or `depths` is empty.
            TypeError: Neither the stem nor `call_block` takes a keyword argument.
            RuntimeError: The head rejects the features; the message names the depth.
        """
        taps = self.taps if depths is None else depths
        return self(x, taps=taps, **keywords)

    @contextmanager
    def at_depth(self, depth: int) -> Generator[ElasticWrapper, None, None]:
        """Make a depth this net's default inside a `with` block.

        When the `with` block ends, also by an exception, the previous default returns. Threads
        that share the net share its default too; they should pass `depth=` to each call instead.

        Args:
            depth: A tap of the net.

        Yields:
            The net itself.

        Raises:
            ValueError: The depth carries no tap.
        """
        previous = self.default_depth
        self.default_depth = resolve_depth(depth, self.taps)
        try:
            yield self
        finally:
            self.default_depth = previous

    @contextmanager
    def skipping(self, blocks: Iterable[int]) -> Generator[ElasticWrapper, None, None]:
        """Leave out some blocks inside a `with` block, as layer dropout does.

        The features and the context behind a skipped block are those in front of it, also at its
        tap. A block that changes their shape cannot be skipped: what comes behind would reject
        them. When the `with` block ends, also by an exception, all blocks run again.

        The parameters of a skipped block get no gradient: DistributedDataParallel then needs
        `find_unused_parameters=True`, and gradients are cleared by `zero_grad(set_to_none=True)`.
        A compiled net is compiled for each set of blocks.

        Args:
            blocks: The depths of the blocks that do not run, from 1;
                `elasticnet.layer_dropout.skipped_blocks` draws them.

        Yields:
            The net itself.

        Raises:
            ValueError: The net has no block at a depth.

        Example:
            `with net.skipping([2, 4]): terms = objective(x, target)`
        """
        skipped = frozenset(blocks)
        for depth in sorted(skipped):
            if not 1 <= depth <= len(self.blocks):
                raise ValueError(
                    f"block {depth}: this net has blocks at depths 1 to {len(self.blocks)}"
                )
        previous = self._skipped_blocks
        self._skipped_blocks = skipped
        try:
            yield self
        finally:
            self._skipped_blocks = previous

    def register_forward_hook(self, hook: Callable[..., Any], **options: Any) -> RemovableHandle:
        """Register a hook as for any module; `net(x, taps=...)` calls it for each prediction.

        Args:
            hook: Called with a prediction. In `net(x, taps=...)` it is called for each one,
                shallowest first, as in `net(x, depth=d)`, and what it returns replaces that
                prediction. With the attribute `takes_all_taps = True` it is called once, with the
                whole `Taps`, and returns a `Taps` or None. So are hooks of some libraries, see
                the page on concepts.
            **options: See `torch.nn.Module.register_forward_hook`.

        Returns:
            A handle that removes the hook.
        """
        return super().register_forward_hook(NetHook(hook), **options)

    # --- other nets of the same parts

    def truncate(self, depth: int) -> ElasticWrapper:
        """Return an independent network that holds only what a depth uses.

        Args:
            depth: A tap of the net.

        Returns:
            A copy of stem, head, and the blocks and adapters up to `depth`, under the same keys.
            Its taps are this net's taps up to `depth`. It keeps this net's class, buffers and
            hooks.

        Raises:
            ValueError: The depth carries no tap, or `net.forward` was replaced.
        """
        depth = resolve_depth(depth, self.taps)
        taps = [tap for tap in self.taps if tap <= depth]
        net_of_same_modules = self._rebuilt(self.blocks[:depth], taps, self._adapters_by_depth())
        return detached_copy(net_of_same_modules)

    def with_taps(self, taps: Iterable[int] | None) -> ElasticWrapper:
        """Return a network of the same modules with predictions at other depths.

        The modules are shared, not copied: training one of the two nets trains both.

        Args:
            taps: The depths that carry a prediction; the deepest block must be among them. None:
                every depth.

        Returns:
            The new net. It keeps this net's class, buffers and hooks, and its adapters at the taps
            that both nets have.

        Raises:
            ValueError: A tap is outside the net or named twice, or the deepest is missing, or
                `net.forward` was replaced.
        """
        resolved = resolve_taps(taps, num_blocks=len(self.blocks))
        return self._rebuilt(self.blocks, resolved, self._adapters_by_depth())

    def grow(
        self,
        blocks: Iterable[nn.Module],
        example: Any,
        init: Callable[[nn.Module], Any] | None = None,
        **keywords: Any,
    ) -> ElasticWrapper:
        """Return a deeper network that is exactly the same function until it is trained further.

        Every new block is copied and made the identity. A run on `example`, in eval mode, then
        proves that each block is the identity.

        Args:
            blocks: The new blocks, in order. They are copied; the originals do not change. The
                copies go to the device of the net and keep their types.
            example: An input of the network.
            init: A function that makes a block the identity, in place. None: the block's own
                `init_identity()`.
            **keywords: For the stem and `call_block` in the run on `example`.

        Returns:
            An independent network with a tap at every new depth. If the deepest tap has an
            adapter, or statistics of the head's BatchNorm, each new tap gets a copy of them.

        Raises:
            ValueError: No blocks are given, or a block is not the identity; the message names the
                block and the difference. Or `net.forward` was replaced.
        """
        new_blocks = identity_blocks(blocks, init, net=self)
        old_depth = len(self.blocks)
        new_depth = old_depth + len(new_blocks)
        new_taps = range(old_depth + 1, new_depth + 1)

        # Each new tap gets its own copy of the deepest tap's adapter. `detached_copy` of the whole
        # net, below, would not part them: one module at several taps stays one module in the copy.
        adapters = self._adapters_by_depth()
        if old_depth in adapters:
            for depth in new_taps:
                adapters[depth] = detached_copy(adapters[old_depth])
        net_of_same_modules = self._rebuilt(
            blocks=[*self.blocks, *new_blocks], taps=[*self.taps, *new_taps], adapters=adapters
        )
        grown = detached_copy(net_of_same_modules)

        # Each new tap also gets a copy of the deepest tap's head statistics.
        statistics = self._statistics_at(old_depth)
        if statistics is not None:
            for depth in new_taps:
                grown.head_statistics[str(depth)] = detached_copy(statistics)

        prove_same_function(self, grown, example, keywords)
        return grown

    def to_sequential(self) -> nn.Sequential:
        """Return an ordinary `nn.Sequential` with the same function at full depth.

        Returns:
            An independent copy of `stem` (if the net has one), `blocks`, `adapter` (if the deepest
            tap has one) and `head`. The state dict keys stay the same, except that
            `adapters.{depth}.*` becomes `adapter.*`. Around a head that takes all taps stand two
            modules without parameters, `into_tuple` and `out_of_tuple`.

        Raises:
            ValueError: The net is not a plain sequence: it has `head_skip` or `call_block`, its
                blocks returned tuples when they ran, or something sits on the net itself, such as a
                hook. `elasticnet.export` can make a plain module of such a net.
        """
        obstacles = self._obstacles_to_a_sequence()
        if obstacles:
            raise ValueError(
                f"a net with {obstacles[0]} is not a plain sequence: elasticnet.export makes a "
                "plain module of it"
            )
        check_not_sharded(self)
        sequence = plain_sequence(
            stem=self.stem,
            blocks=self.blocks,
            adapter=self._adapters_by_depth().get(self.taps[-1]),
            head=self.head,
            takes_tuple=self._head_takes_all_taps(),
            training=self.training,
        )
        copied_sequence = detached_copy(sequence)
        statistics = self._statistics_at(self.taps[-1])
        if statistics is not None:
            write_into_head(copied_sequence.get_submodule("head"), statistics)
        return copied_sequence

    def _obstacles_to_a_sequence(self) -> list[str]:
        """Return what an `nn.Sequential` of the parts would leave out, as descriptions."""
        obstacles = self.additions()
        if self.head_skip is not None:
            obstacles.append("head_skip")
        if self.call_block is not None:
            obstacles.append("call_block")
        if self._arguments_of_stem().takes_last_depth:
            obstacles.append("a stem that takes last_depth")
        if self._blocks_return_tuples:
            obstacles.append("blocks that return tuples")
        return obstacles

    def _rebuilt(
        self, blocks: Iterable[nn.Module], taps: Sequence[int], adapters: Mapping[int, nn.Module]
    ) -> ElasticWrapper:
        """Return a net like this one with other blocks and taps; it shares the modules.

        It has those of the adapters whose depth is a tap.
        """
        check_not_sharded(self)
        adapters_at_taps = {depth: adapters[depth] for depth in taps if depth in adapters}
        net = shallow_copy(self)
        net.taps = tuple(taps)
        net.default_depth = net.taps[-1]
        net._skipped_blocks = frozenset()
        net.blocks = nn.ModuleList(blocks)
        net.adapters = _module_dict(adapters_at_taps)
        net.head_statistics = statistics_by_depth(self.head_statistics, taps)
        # The two containers are new; every other module keeps its own mode.
        net.blocks.training = self.training
        net.adapters.training = self.training
        return net

    def _adapters_by_depth(self) -> dict[int, nn.Module]:
        return {int(depth): adapter for depth, adapter in self.adapters.items()}

    # --- what the net is

    def check(self, example: Any, strict: bool = False, **keywords: Any) -> list[TapReport]:
        """Run the net once on an example and report what comes out at every tap.

        The run is in eval mode and without gradients. Afterwards every module has its own mode
        again. Forward hooks on the net itself do not run, and pre-hooks do. A warning is logged if
        running statistics of BatchNorm do not fit the depths that read them.

        Args:
            example: An input of the network.
            strict: Whether to raise the first problem instead of reporting it.
            **keywords: For the stem and `call_block`.

        Returns:
            A report for each tap, shallowest first. A report's `problem` says why the head rejects
            the tap and which adapter would help, or how many features are not finite.

        Raises:
            ValueError: With `strict`, the first problem. Or `net.forward` was replaced.
            RuntimeError: A part overwrites in place what a pass guards, see `copy_features`.
        """
        probe = self._rebuilt(self.blocks, self.taps, self._adapters_by_depth())
        # The probe is a net of its own, so that these two lines leave this net as it is. Hooks
        # could take a rejection for a prediction. The pass is replaced and not called, because the
        # probe's pre-hooks, and the forward of a subclass, belong to it.
        probe._forward_hooks.clear()
        probe._run_all_taps = probe._probe_all_taps
        with evaluating(probe), torch.no_grad():
            outputs = probe(example, taps=probe.taps, **keywords)
        warn_of_statistics(self.head, self.adapters, self.head_statistics, self.taps)
        reports = tap_reports(outputs)
        for report in reports:
            if strict and report.problem is not None:
                raise ValueError(report.problem)
        return reports

    def _probe_all_taps(self, x: Any, depths: tuple[int, ...], keywords: dict[str, Any]) -> Taps:
        """Do what `_run_all_taps` does, and go on where the head rejects a tap.

        The prediction there is a `Rejection`. A head that takes all taps is called at each, so that
        a rejection belongs to one tap. Writes in place are found by comparing values, too.
        """
        check_backward_hooks(self)
        state = self._run_stem(x, self.taps[-1], keywords, compare_values=True)
        features: list[Any] = []
        predictions: list[Any] = []
        for tap in depths:
            self._go_to_tap(state, tap)
            features.append(state.features)
            try:
                (prediction,) = self._predict([state])
            except RejectionError as error:
                prediction = Rejection(str(error))
                state.guarded.check_behind(self._name_of_head_at([state]))
            state.guarded.guard(prediction, name=f"the prediction at depth {tap}")
            predictions.append(prediction)
        state.guarded.check_everything(writer="the head, or a block behind,")
        return Taps(depths, tuple(predictions), tuple(features))

    def additions(self) -> list[str]:
        """Return what sits on the net itself, beside stem, blocks, head and adapters.

        Returns:
            Descriptions of a class of its own, a replaced forward, forward hooks, parameters,
            buffers and further modules. Empty for a net as this class builds it.
        """
        found = additions_to(self)
        if type(self) is not ElasticWrapper:
            found.insert(0, f"the class {type(self).__name__}")
        return found

    @property
    def stem_keywords(self) -> frozenset[str]:
        """The names of the keyword arguments that the stem's forward lists."""
        return self._arguments_of_stem().names

    def takes_keyword(self, name: str) -> bool:
        """Return whether `net(x, ...)` may have a keyword argument of this name.

        Args:
            name: Such as "mask".
        """
        if self.keyword_names is not None:
            return name in self.keyword_names
        if name in self.stem_keywords:
            return True
        return self._reads_context()  # in the context any name may stand

    def group_matcher(self, coarse: bool = False) -> LayerMatcher:
        """Return the function from a parameter's name to its layer, which timm's optimisers take.

        A net that was split from a timm model has that model's layers. Otherwise the stem is layer
        0, block i is layer i + 1, and the head comes last, with the adapters.

        Args:
            coarse: As in timm; of no effect here, where a block is a layer in any case.

        Example:
            `timm.optim.create_optimizer_v2(net, "adamw", lr=1e-3, layer_decay=0.75)`
        """
        return layer_matcher(self, num_blocks=len(self.blocks), groups=self.parameter_groups)

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that weight decay leaves out, which optimisers ask for.

        They are what the model says from which this net was split, and what modules inside the net
        say by a method of this name.
        """
        return no_weight_decay(self, groups=self.parameter_groups)

    def extra_repr(self) -> str:
        """Return the text that `repr` shows before the modules."""
        return f"taps={self.taps}"


def _module_dict(adapters: Mapping[int, nn.Module]) -> nn.ModuleDict:
    """Return the adapters by the name of their depth, shallowest first."""
    return nn.ModuleDict({str(depth): adapters[depth] for depth in sorted(adapters)})
