"""ElasticWrapper: the block loop that turns a sequential-block network into an elastic one."""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard, overload

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from elasticnet._compare import same_bits
from elasticnet._copies import detached_copy
from elasticnet._head_statistics import call_head, statistics_by_depth, write_into_head
from elasticnet._kept import KeptTensors, copied, in_own_containers, tensors_in
from elasticnet._stem_arguments import LAST_DEPTH, StemArguments, read_stem_arguments
from elasticnet._wrapped import check_not_sharded
from elasticnet._wrapper_checks import (
    check_adapter_depths,
    check_all_used,
    check_modules,
    check_predictions,
    features_and_context,
    is_plain_tuple,
    listed,
    not_identity,
    rejection_message,
    shape_of,
    warn_of_statistics,
)
from elasticnet.recompute import recomputed
from elasticnet.taps import resolve_depth, resolve_depths, resolve_taps

HEAD_SKIPS = (None, "stem", "input")
PARTS = ("stem", "blocks", "head", "adapters", "head_statistics")
"""The modules of a net, as its state dict names them."""
HOOK_REMEDY = (
    "It must return a Taps, or None to change nothing. "
    "A hook that changes each prediction belongs on the head"
)

CallBlock = Callable[[nn.Module, Any, Any, int], tuple[Any, Any]]


class Taps(NamedTuple):
    """The predictions and features of one pass over all blocks.

    Attributes:
        depths: The depths of the predictions, shallowest first.
        predictions: The head's output at each of `depths`.
        features: The features at every tap of the net, shallowest first, also at taps that are not
            in `depths`. They are what the blocks returned, before any adapter.
    """

    depths: tuple[int, ...]
    predictions: tuple[Any, ...]
    features: tuple[Tensor, ...]


class TapReport(NamedTuple):
    """What `ElasticWrapper.check` saw at one tap.

    Attributes:
        depth: The tap's depth.
        shape: The shape of its features. If they are a list, tuple or dict, the shape of each
            tensor in it.
        output_shape: The shape of the head's output. None if the head rejects the tap, or if its
            output is not a tensor.
        finite: Whether all features are finite.
        problem: Why the head rejects the tap, or how many features are not finite. None: the tap
            is usable.
    """

    depth: int
    shape: tuple[Any, ...]
    output_shape: tuple[int, ...] | None
    finite: bool
    problem: str | None


class _PassState(NamedTuple):
    """What all parts of one pass share.

    Attributes:
        skip: What the head takes beside the features. None: it takes the features alone.
        kept: What no part may overwrite; see the comment "the parts of a pass".
    """

    skip: Any
    kept: KeptTensors


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
    `call_block` takes and returns it. The stem itself gets those keyword arguments that its
    forward names. `depth` and `taps` are the net's own arguments and never part of the context.

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
            `call_block` is given. If it has the attribute `takes_last_depth = True`, it gets the
            keyword argument `last_depth`: how many blocks the pass can run, so that it prepares no
            more than these need. None: the first block takes the input.
        taps: The depths that carry a prediction; the deepest must be among them. None: every depth.
        adapters: `{depth: module}`: the module maps the features of the tap at that depth to what
            the head takes.
        head_skip: "stem" calls `head(features, stem_output)`, "input" calls `head(features, x)`,
            None calls `head(features)`.
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

    Attributes:
        taps: The depths that carry a prediction, sorted, the deepest last.
        origin: How a registered builder made this network. None: no registered builder made it.
        split_from: What `elasticnet.retrofit` remembers of the model that it split this network
            from, for `elasticnet.retrofit.to_model`. None: it was not split.

    Raises:
        TypeError: A part is not a module, or `call_block` is a module.
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
    ) -> None:
        super().__init__()
        blocks = list(body_blocks)
        adapters = dict(adapters or {})
        check_modules(blocks, shared_head, stem)
        if head_skip not in HEAD_SKIPS:
            raise ValueError(f"head_skip {head_skip!r}: expected None, 'stem' or 'input'")
        if isinstance(call_block, nn.Module):
            raise TypeError(
                "call_block is a module: expected a function; "
                "keep parameters in the stem or the blocks"
            )
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
        self.default_depth = self.taps[-1]
        self.origin: Origin | None = None
        self.split_from: object | None = None
        self._stem_arguments = read_stem_arguments(stem)
        self._blocks_return_tuples = False  # set when a block runs, read by to_sequential
        # For `check`: a pass compares values, and returns rejections in the place of predictions.
        self._is_probe = False

    @property
    def stem_keywords(self) -> frozenset[str]:
        """The names of the keyword arguments that the stem's forward lists."""
        return self._arguments_of_stem().names

    def extra_repr(self) -> str:
        """Return the text that `repr` shows before the modules."""
        return f"taps={self.taps}"

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
            self._check_backward_hooks()
            return self._run_all_taps(x, resolve_depths(taps, self.taps), keywords)

        last_depth = self.default_depth if depth is None else resolve_depth(depth, self.taps)
        features, context, state = self._start_pass(x, last_depth, keywords)
        # Not self.blocks[:last_depth], because a slice makes a new ModuleList in every call.
        for block_depth, block in enumerate(self.blocks, start=1):
            features, context = self._run_block(block, features, context, block_depth, state)
            if block_depth == last_depth:
                break
        (prediction,) = self._predict({last_depth: features}, state)
        return prediction

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

    def register_forward_hook(self, hook: Callable[..., Any], **options: Any) -> RemovableHandle:
        """Register a hook as for any module; it must leave a `Taps` a `Taps`.

        Args:
            hook: Called with what `net(x)` or `net(x, taps=...)` returns.
            **options: See `torch.nn.Module.register_forward_hook`.

        Returns:
            A handle that removes the hook.
        """
        return super().register_forward_hook(_NetHook(hook), **options)

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
        shared = self._rebuilt(self.blocks[:depth], taps, self._adapters_by_depth())
        return detached_copy(shared)

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
        obstacles = self.additions()
        if self.head_skip is not None:
            obstacles.append("head_skip")
        if self.call_block is not None:
            obstacles.append("call_block")
        if self._arguments_of_stem().takes_last_depth:
            obstacles.append("a stem that takes last_depth")
        if self._blocks_return_tuples:
            obstacles.append("blocks that return tuples")
        if obstacles:
            raise ValueError(
                f"a net with {obstacles[0]} is not a plain sequence: elasticnet.export makes a "
                "plain module of it"
            )
        check_not_sharded(self)
        blocks = nn.Sequential(*self.blocks)
        sequence = nn.Sequential()
        if self.stem is not None:
            sequence.add_module("stem", self.stem)
        sequence.add_module("blocks", blocks)
        deepest = str(self.taps[-1])
        if deepest in self.adapters:
            sequence.add_module("adapter", self.adapters[deepest])
        if self._head_takes_all_taps():
            sequence.add_module("into_tuple", _IntoTuple())
        sequence.add_module("head", self.head)
        if self._head_takes_all_taps():
            sequence.add_module("out_of_tuple", _OutOfTuple())
        # Every module of the net keeps its own mode; the new ones get the net's.
        sequence.training = self.training
        blocks.training = self.training
        copied_sequence = detached_copy(sequence)
        statistics = self._statistics_at(self.taps[-1])
        if statistics is not None:
            write_into_head(copied_sequence.get_submodule("head"), statistics)
        return copied_sequence

    def additions(self) -> list[str]:
        """Return what sits on the net itself, beside stem, blocks, head and adapters.

        Returns:
            Descriptions of a class of its own, a replaced forward, forward hooks, parameters,
            buffers and further modules. Empty for a net as this class builds it.
        """
        found: list[str] = []
        if type(self) is not ElasticWrapper:
            found.append(f"the class {type(self).__name__}")
        if self._has_replaced_forward():
            found.append("a replaced forward")
        hook_tables: list[dict[int, Any]] = [self._forward_pre_hooks, self._forward_hooks]
        for hooks in hook_tables:
            found += [f"the hook {_name_of(hook)}" for hook in hooks.values()]
        found += [f"the parameter {name!r}" for name in self._parameters]
        found += [f"the buffer {name!r}" for name in self._buffers]
        found += [f"the module {name!r}" for name in self._modules if name not in PARTS]
        return found

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
        new_blocks = [
            self._identity_block(block, init, name=_new_block_name(index, block))
            for index, block in enumerate(blocks)
        ]
        if not new_blocks:
            raise ValueError("grow: no blocks given")
        old_depth = len(self.blocks)
        new_taps = range(old_depth + 1, old_depth + len(new_blocks) + 1)
        adapters = self._adapters_by_depth()
        if old_depth in adapters:
            # Copied here and with the net: without this copy the new taps would share one adapter.
            for depth in new_taps:
                adapters[depth] = detached_copy(adapters[old_depth])
        old_depth_statistics = self._statistics_at(old_depth)
        shared = self._rebuilt(
            blocks=[*self.blocks, *new_blocks], taps=[*self.taps, *new_taps], adapters=adapters
        )
        grown = detached_copy(shared)
        if old_depth_statistics is not None:
            for depth in new_taps:
                grown.head_statistics[str(depth)] = detached_copy(old_depth_statistics)
        self._prove_same_function(grown, example, keywords)
        return grown

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
            RuntimeError: A part overwrites in place what a pass keeps, see `copy_features`.
        """
        probe = self._rebuilt(self.blocks, self.taps, self._adapters_by_depth())
        probe._is_probe = True
        # Hooks could take a rejection for a prediction. The table is the probe's own, see
        # _shallow_copy: this net keeps its hooks.
        probe._forward_hooks.clear()
        with evaluating(probe), torch.no_grad():
            outputs = probe(example, taps=probe.taps, **keywords)

        warn_of_statistics(self.head, self.adapters, self.head_statistics, self.taps)
        # The deepest block always has a tap, and the last features are the deepest.
        deepest_shape = shape_of(outputs.features[-1])
        reports: list[TapReport] = []
        for depth, prediction, features in zip(
            outputs.depths, outputs.predictions, outputs.features, strict=True
        ):
            reports.append(_report(depth, prediction, features, deepest_shape))
        for report in reports:
            if strict and report.problem is not None:
                raise ValueError(report.problem)
        return reports

    # --- the parts of a pass.
    # A part may write in place into what it is given, which the pass may still need. Therefore a
    # pass notes what it needs, each value with its name for messages:
    # - `keep_input`: the input or the stem's output, which every part may be given;
    # - `keep_features`: what a block returned, which the next parts are given;
    # - `keep_prediction`: what the head returned, which no part is given.
    # `check` follows each part, and raises if it wrote into what it could be given.
    # `check_all` ends a pass over all taps, and looks at everything that was noted.

    def _run_all_taps(self, x: Any, depths: tuple[int, ...], keywords: dict[str, Any]) -> Taps:
        """Run all blocks once and predict at `depths`, sorted as `resolve_depths` returns them."""
        features, context, state = self._start_pass(x, len(self.blocks), keywords)
        # A head that takes all taps is called once, behind the last block. A probe asks it about
        # each tap alone, so that a rejection names its tap.
        predicts_at_end = self._head_takes_all_taps() and not self._is_probe
        features_by_depth: dict[int, Any] = {}
        predictions: list[Any] = []
        for depth, block in enumerate(self.blocks, start=1):
            features, context = self._run_block(block, features, context, depth, state)
            if depth in self.taps:
                features_by_depth[depth] = features
                state.kept.keep_features(features, name=f"the features at depth {depth}")
            # Before the later blocks run: one of them could change these features by a write that
            # PyTorch does not count, such as one in inference_mode.
            if depth in depths and not predicts_at_end:
                predictions += self._predict({depth: features}, state)
        if predicts_at_end:
            asked = {depth: features_by_depth[depth] for depth in depths}
            predictions += self._predict(asked, state)
        state.kept.check_all(writer="the head, or a block behind,")
        return Taps(depths, tuple(predictions), tuple(features_by_depth.values()))

    def _check_backward_hooks(self) -> None:
        """Raise if the backward pass of a `Taps` would leave out a hook on this net.

        PyTorch runs backward hooks only of modules that return a tensor or a tuple of tensors.
        """
        if not torch.is_grad_enabled():
            return
        hook_tables: list[dict[int, Any]] = [self._backward_pre_hooks, self._backward_hooks]
        hooks = [hook for table in hook_tables for hook in table.values()]
        if hooks:
            raise TypeError(
                f"the backward hook {_name_of(hooks[0])} of this net would not run for a Taps, "
                "from net(x, taps=...): register it on the head, or on the stem or a block"
            )

    def _start_pass(
        self, x: Any, last_depth: int, keywords: dict[str, Any]
    ) -> tuple[Any, Any, _PassState]:
        """Run the stem; return features and context for the first block, and the pass's state."""
        self._check_number_of_blocks()
        kept = KeptTensors(compare_values=self._is_probe)
        kept.keep_input(x, name="the input")
        features, context = self._run_stem(x, last_depth, keywords)
        kept.check(writer="the stem")

        skip = None
        if self.head_skip == "input":
            skip = x
        if self.head_skip == "stem":
            skip = features
            kept.keep_input(features, name="the stem's output")
        return features, context, _PassState(skip=skip, kept=kept)

    def _check_number_of_blocks(self) -> None:
        """Raise if blocks were added or removed since the net was made, as by `del net.blocks[-1]`.

        Without this error, `net(x, depth=5)` of a net that has 4 blocks left would be depth 4.
        """
        if len(self.blocks) != self.taps[-1]:
            raise ValueError(
                f"the net has {len(self.blocks)} blocks, and its deepest tap is at depth "
                f"{self.taps[-1]}: blocks were added to net.blocks or removed from it. Use "
                "net.truncate or net.grow, or make a new ElasticWrapper"
            )

    def _run_stem(self, x: Any, last_depth: int, keywords: dict[str, Any]) -> tuple[Any, Any]:
        """Return the features and the context for the first block.

        The stem gets the keyword arguments that its forward names. All of them are the context,
        which call_block gets, unless the stem returns a context of its own. One that no part gets
        is an error, because it may be misspelt.
        """
        arguments = self._arguments_of_stem()
        only_for_context = arguments.of_others(keywords)
        # Before the stem runs: its error about a missing argument would hide the misspelt name.
        if self.call_block is None:
            check_all_used(only_for_context)
        if self.stem is None:
            return x, keywords

        for_stem = arguments.of_stem(keywords)
        if arguments.takes_last_depth:
            if LAST_DEPTH in keywords:
                raise TypeError(
                    f"{LAST_DEPTH}={keywords[LAST_DEPTH]!r}: the net itself tells this stem how "
                    "deep the pass goes; pass depth= or taps= instead"
                )
            for_stem[LAST_DEPTH] = last_depth
        output = self.stem(self._given(x), **for_stem)
        if not is_plain_tuple(output):
            return output, keywords
        if self.call_block is None:
            raise ValueError(
                "the stem returned (x, context): pass call_block to use the context in the blocks"
            )
        # The stem's own context takes the place of the keyword arguments: call_block gets none.
        check_all_used(only_for_context)
        return features_and_context(output, source="the stem")

    def _arguments_of_stem(self) -> StemArguments:
        """Return what the stem takes; it is read again if the stem was replaced."""
        if type(self.stem) is not self._stem_arguments.stem_class:  # as by `net.stem = another`
            self._stem_arguments = read_stem_arguments(self.stem)
        return self._stem_arguments

    def _run_block(
        self, block: nn.Module, features: Any, context: Any, depth: int, state: _PassState
    ) -> tuple[Any, Any]:
        """Return the features at a depth, which `block` computes, and the next block's context."""
        recompute = self.checkpoint_blocks and self.training and torch.is_grad_enabled()
        if recompute:
            # The backward pass will run the block again, on these features.
            name = f"the features at depth {depth - 1}, for the backward pass,"
            state.kept.keep_features(features, name=name)

        given = self._given(features)
        if self.call_block is not None:
            call_block = self.call_block
            if recompute:
                call_block = recomputed(call_block, module=block)
            index = depth - 1  # call_block counts blocks from 0
            returned = call_block(block, given, context, index)
            features, context = features_and_context(returned, source="call_block")
        else:
            run = recomputed(block, module=block) if recompute else block
            features = self._features_in(run(given), given, depth)
        state.kept.check(writer=f"block {depth} ({type(block).__name__})")
        return features, context

    def _features_in(self, output: Any, given: Any, depth: int) -> Any:
        """Return the features in a block's output; note for `to_sequential` if it is a tuple."""
        if not is_plain_tuple(output):
            return output
        if is_plain_tuple(given):
            raise TypeError(
                f"block {depth} takes a tuple and returns a tuple, and only the first entry would "
                "go on: pass call_block, which says what the features are, or let the blocks take "
                "and return a list or a named tuple, which go on as they are"
            )
        self._blocks_return_tuples = True  # read by to_sequential
        return output[0]

    def _predict(self, features_by_depth: Mapping[int, Any], state: _PassState) -> tuple[Any, ...]:
        """Return the predictions from the features by depth.

        These are of one depth, unless the head takes all taps.
        """
        predictions = self._run_head_or_reject(features_by_depth, state.skip)
        where = f"at depth {listed(features_by_depth)}"
        has_adapter = any(str(depth) in self.adapters for depth in features_by_depth)
        writer = "the head or its adapter" if has_adapter else "the head"
        state.kept.check(writer=f"{writer} {where}")
        state.kept.keep_prediction(predictions, name=f"the prediction {where}")
        return predictions

    def _run_head_or_reject(
        self, features_by_depth: Mapping[int, Any], skip: Any
    ) -> tuple[Any, ...]:
        """Return the predictions; if the head fails, raise, or give a probe `_Rejection`s."""
        try:
            predictions = self._run_head(features_by_depth, skip)
        except torch.OutOfMemoryError:  # a RuntimeError too, but not one that an adapter mends
            raise
        except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
            message = rejection_message(features_by_depth, error)
            if self._is_probe:
                return tuple(_Rejection(message) for _ in features_by_depth)
            raise RuntimeError(message) from error
        check_predictions(predictions, num_taps=len(features_by_depth))
        return predictions

    def _run_head(self, features_by_depth: Mapping[int, Any], skip: Any) -> Any:
        """Call the head once: with a tuple if it takes all taps, else with one tap's features."""
        adapted = tuple(self._adapted(depth, each) for depth, each in features_by_depth.items())
        if self._head_takes_all_taps():
            return self._call_head(adapted, skip)
        ((depth, _),) = features_by_depth.items()
        (each,) = adapted
        return (self._call_head(each, skip, self._statistics_at(depth)),)

    def _head_takes_all_taps(self) -> bool:
        return getattr(self.head, "takes_all_taps", False) is True

    def _adapted(self, depth: int, features: Any) -> Any:
        """Return what the head takes at a tap: its features, through its adapter if it has one."""
        given = self._given(features)
        name = str(depth)
        return self.adapters[name](given) if name in self.adapters else given

    def _statistics_at(self, depth: int) -> nn.Module | None:
        """Return the statistics that the head's BatchNorm has at a depth; None: its own."""
        name = str(depth)
        return self.head_statistics[name] if name in self.head_statistics else None

    def _call_head(self, features: Any, skip: Any, statistics: nn.Module | None = None) -> Any:
        """Return the head's output; the head takes a skip if the net has `head_skip`."""
        inputs = (features,)
        if self.head_skip is not None:
            inputs = (features, self._given(skip))
        return call_head(self.head, statistics, inputs)

    def _given(self, value: Any) -> Any:
        """Return what a part is given to read: the value, or a copy in which it may write.

        In lists and dicts of its own in any case, which it may change.
        """
        return copied(value) if self.copy_features else in_own_containers(value)

    # --- truncate, with_taps, grow and check

    def _adapters_by_depth(self) -> dict[int, nn.Module]:
        return {int(depth): adapter for depth, adapter in self.adapters.items()}

    def _has_replaced_forward(self) -> bool:
        """Return whether `net.forward` was set to something else than the method of the class."""
        forward = vars(self).get("forward")
        return forward is not None and forward != types.MethodType(type(self).forward, self)

    def _rebuilt(
        self, blocks: Iterable[nn.Module], taps: Sequence[int], adapters: Mapping[int, nn.Module]
    ) -> ElasticWrapper:
        """Return this net with other blocks, taps and adapters, without copying any module."""
        if self._has_replaced_forward():
            raise ValueError(
                "net.forward was replaced, and the replacement may call the whole net: put "
                "ElasticWrapper's own forward back first (del net.forward)"
            )
        check_not_sharded(self)
        net = self._shallow_copy()
        net.taps = tuple(taps)
        net.default_depth = net.taps[-1]
        net.blocks = nn.ModuleList(blocks)
        net.adapters = _module_dict({depth: adapters[depth] for depth in taps if depth in adapters})
        net.head_statistics = statistics_by_depth(self.head_statistics, taps)
        # The two containers are new; every other module keeps its own mode.
        net.blocks.training = self.training
        net.adapters.training = self.training
        return net

    def _shallow_copy(self) -> ElasticWrapper:
        """Return a net of this net's class with the same modules, settings, buffers and hooks.

        Each table (of modules, parameters, buffers, hooks) is copied, so that assigning to the new
        net leaves this one alone. A method of this net, such as a subclass's call_block or hook,
        becomes the new net's.
        """
        net = copy.copy(self)
        for name, value in vars(self).items():
            if _is_table(value):
                table = value.copy()
                for key, entry in table.items():
                    table[key] = _rebound(entry, self, net)
                vars(net)[name] = table
            else:
                vars(net)[name] = _rebound(value, self, net)
        # `_rebuilt` refuses a replaced forward. One that was set back by hand is the class's own:
        # the new net has it without the attribute.
        vars(net).pop("forward", None)
        return net

    def _identity_block(
        self, block: nn.Module, init: Callable[[nn.Module], Any] | None, name: str
    ) -> nn.Module:
        """Return a copy of a block, made the identity, on this net's device and in its mode."""
        identity = detached_copy(block)
        if init is None:
            init_identity = getattr(identity, "init_identity", None)
            if init_identity is None:
                raise ValueError(
                    f"grow: {name} has no init_identity(); pass init=, a function that makes a "
                    "block the identity (for a residual block: zero its last layer)"
                )
            init_identity()
        else:
            init(identity)
        identity.train(self.training)
        parameter = next(self.parameters(), None)
        if parameter is None:
            return identity
        return identity.to(parameter.device)

    def _prove_same_function(
        self, grown: ElasticWrapper, example: Any, keywords: dict[str, Any]
    ) -> None:
        """Raise unless the new blocks of the grown net change neither features nor output."""
        old_depth = len(self.blocks)
        with evaluating(self), evaluating(grown), torch.no_grad():
            features_by_depth = grown._features_by_depth(old_depth, example, keywords)
            for index, block in enumerate(grown.blocks[old_depth:]):
                # The deepest block of this net has a tap, and so has each new block.
                depth_before = old_depth + index
                before = features_by_depth[depth_before]
                after = features_by_depth[depth_before + 1]
                problem = not_identity(before, after)
                if problem is not None:
                    name = _new_block_name(index, block)
                    raise ValueError(f"grow: {name} is not the identity: {problem}")

            prediction = grown(example, depth=-1, **keywords)
            if not same_bits(prediction, grown(example, depth=old_depth, **keywords)):
                raise ValueError(
                    "grow: the adapters of the new taps change the prediction: "
                    "make them equal to the deepest tap's"
                )
            if not same_bits(prediction, self(example, depth=-1, **keywords)):
                raise ValueError(
                    "grow: a copy of this net gives another prediction than the net: something in "
                    "it draws random numbers, or depends on what is not copied"
                )

    def _features_by_depth(
        self, head_depth: int, example: Any, keywords: dict[str, Any]
    ) -> dict[int, Any]:
        """Return the features at every tap, as the blocks returned them.

        The head runs at one depth alone: it may reject what a block that is no identity returns.
        """
        net = self._rebuilt(self.blocks, self.taps, self._adapters_by_depth())
        net.copy_features = True  # each part gets copies, and leaves the features as they are
        outputs = net(example, taps=[head_depth], **keywords)
        return dict(zip(net.taps, outputs.features, strict=True))


class _NetHook:
    """A forward hook on an elastic net; an error names the hook if it takes no `Taps`.

    Args:
        hook: The hook that was registered.
    """

    def __init__(self, hook: Callable[..., Any]) -> None:
        functools.update_wrapper(self, hook)  # keeps its name and module
        self.hook = hook

    def __call__(self, *arguments: Any) -> Any:
        """Return what the hook returns."""
        output = arguments[-1]  # the last one in each signature that PyTorch calls hooks by
        if not isinstance(output, Taps):
            return self.hook(*arguments)
        try:
            result = self.hook(*arguments)
        except (AttributeError, TypeError) as error:
            raise TypeError(f"{self._description()} raised: {error}. {HOOK_REMEDY}") from error
        if result is not None and not isinstance(result, Taps):
            returned = type(result).__name__
            raise TypeError(f"{self._description()} returned a {returned}. {HOOK_REMEDY}")
        return result

    def _description(self) -> str:
        return f"the forward hook {_name_of(self.hook)} got a Taps, from net(x, taps=...), and"


def _is_table(value: Any) -> TypeGuard[dict[Any, Any]]:
    return isinstance(value, dict)


def _rebound(value: Any, old: nn.Module, new: nn.Module) -> Any:
    """Return the new net's method if a value is a method of the old one; else the value itself."""
    if isinstance(value, types.MethodType) and value.__self__ is old:
        return types.MethodType(value.__func__, new)
    if isinstance(value, _NetHook):
        return _NetHook(_rebound(value.hook, old, new))
    return value


class _IntoTuple(nn.Module):
    """Makes a tuple of one tap's features, for a head that takes all taps."""

    def forward(self, features: Any) -> tuple[Any]:
        return (features,)


class _OutOfTuple(nn.Module):
    """Takes the only prediction out of the tuple that such a head returns."""

    def forward(self, predictions: tuple[Any]) -> Any:
        (prediction,) = predictions
        return prediction


class _Rejection(NamedTuple):
    """What `check` gets in the place of a prediction if the head rejects the features.

    Attributes:
        message: The error.
    """

    message: str


def _report(
    depth: int, prediction: Any, features: Any, deepest_shape: tuple[Any, ...]
) -> TapReport:
    """Return the report of one tap."""
    shape = shape_of(features)
    tensors = tensors_in(features)
    num_not_finite = sum(_count_not_finite(tensor) for tensor in tensors)
    problem = None
    if num_not_finite:  # This comes first: it explains a rejection by the head, too.
        num_values = sum(tensor.numel() for tensor in tensors)
        problem = (
            f"depth {depth}: {num_not_finite} of {num_values} features are not finite "
            "(NaN or infinity)"
        )
    elif isinstance(prediction, _Rejection):
        problem = prediction.message
        if shape != deepest_shape:
            problem += f" (the deepest tap has shape {deepest_shape})"
    return TapReport(
        depth=depth,
        shape=shape,
        output_shape=tuple(prediction.shape) if isinstance(prediction, Tensor) else None,
        finite=num_not_finite == 0,
        problem=problem,
    )


@contextmanager
def evaluating(net: nn.Module) -> Generator[nn.Module, None, None]:
    """Put every module of a net into eval mode inside a `with` block.

    When the `with` block ends, also by an exception, each module gets its own mode back.

    Args:
        net: Any module.

    Yields:
        The net.
    """
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield net
    finally:
        for module, training in modes:
            module.training = training


def _module_dict(adapters: Mapping[int, nn.Module]) -> nn.ModuleDict:
    """Return the adapters by the name of their depth, shallowest first."""
    return nn.ModuleDict({str(depth): adapters[depth] for depth in sorted(adapters)})


def _name_of(hook: Any) -> str:
    """Return what messages call a hook."""
    return getattr(hook, "__qualname__", type(hook).__qualname__)


def _new_block_name(index: int, block: nn.Module) -> str:
    return f"new block {index} ({type(block).__name__})"


def _count_not_finite(tensor: Tensor) -> int:
    return int((~torch.isfinite(tensor)).sum())
