"""Splits transformers models of one stack of layers: ViT, encoders such as BERT, decoders.

Their forwards branch on their inputs, so nothing is traced by torch.fx. The stem runs the base
model's own forward with probes in the place of the layers, which note what each layer would have
been given: masks, positions, rotary embeddings. The head runs the model's own forward with a
stand-in where the base model was. Both are shells: new objects around the model's own modules.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from elasticnet._modules.compare import same_bits
from elasticnet._modules.kept_attributes import attributes_put_back
from elasticnet.retrofit.parts import NOT_RUN, PART_ERRORS, Split, verify, with_copies_if_needed
from elasticnet.retrofit.transformers.hidden_state_head import MASK, HiddenStateHead
from elasticnet.retrofit.transformers.layer_inputs import LayerInputs, NotOfProbe, call_layer
from elasticnet.retrofit.transformers.layer_list import (
    BY_HAND,
    RUN_ERRORS,
    TOKENS,
    Anatomy,
    anatomy_of,
    without_cache,
)
from elasticnet.retrofit.transformers.router_loss import RouterLoss, has_router_loss
from elasticnet.retrofit.transformers.split_from import transformers_source
from elasticnet.wrapper import evaluating

__all__ = ["RouterLoss", "split"]

logger = logging.getLogger(__name__)

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
    "push_to_hub": (
        "elasticnet.push_to_hub uploads all depths, and elasticnet.retrofit.to_model(net, depth) "
        "returns an ordinary model, which has push_to_hub"
    ),
    "gradient_checkpointing_enable": (
        "let split(...).wrap(checkpoint_blocks=True) make the net, or enable it in the model, "
        "before the split"
    ),
    "resize_token_embeddings": (
        "resize them in the model, before the split: the parts hold the embeddings as they are"
    ),
}
SOUNDS = ("input_values", "input_features")  # the main input of models that hear
# the parameters of embeddings that stand before the grid of an image
PREFIX_TOKENS = (
    "cls_token",
    "class_embedding",
    "distillation_token",
    "register_tokens",
    "cls_register_token",
)
TOKENS_BEHIND = "detection_tokens"  # YOLOS' parameter of tokens that stand behind the grid


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
    _check_rescaling(model)
    _check_attention_switch(model)
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


def _check_rescaling(model: Any) -> None:
    """Refuse RWKV's habit of dividing the weights of its layers in eval mode."""
    every = getattr(model.config, "rescale_every", None) or 0
    if every > 0:
        raise ValueError(
            f"{type(model).__name__} is not split: rescale_every={every} lets its forward change "
            "the weights of its layers. Set model.config.rescale_every = 0 first"
        )


def _check_attention_switch(model: Any) -> None:
    """Refuse BigBird's habit of giving its layers another attention where an input is short."""
    for module in model.modules():
        is_switched = hasattr(module, "set_attention_type")
        if is_switched and getattr(module, "attention_type", None) == "block_sparse":
            raise ValueError(
                f"{type(model).__name__} is not split: attention_type='block_sparse' lets its "
                "forward switch the attention of its layers where an input is short. Make the "
                "model with attention_type='original_full' in its config, which computes the same "
                "for short inputs"
            )


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
    _warn_of_tokens_behind(anatomy)
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
        prefix_tokens=_prefix_tokens(anatomy),
        call_block=call_layer,
        head_skip="context" if head.takes_context else None,
        checkpoint_blocks=_recomputes_layers(base, anatomy.layers),
        mask_keyword=_mask_keyword(stem, anatomy.layout),
        keyword_names=frozenset(stem.names),
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
        name = type(model).__name__
        raise ValueError(f"{name} is not split: {_reason(error, anatomy)}") from error
    shorter = _shorter(model, example)
    if shorter is None or not _runs(run_model, shorter):
        return
    try:
        verify(parts, model, shorter, call=run_model)
    except ValueError as error:
        name = type(model).__name__
        raise ValueError(
            f"{name} is not split: for an input of shape {tuple(shorter.shape)}, {error}; {BY_HAND}"
        ) from error


def _shorter(model: Any, example: Tensor) -> Tensor | None:
    """The first sample of words or of a sound, shorter by one position; None of other inputs.

    What a forward does to some lengths alone shows so, such as SEW's padding of odd ones.
    """
    # how many samples of a sound are one position
    length = int(getattr(model.config, "inputs_to_logits_ratio", 1))
    if example.ndim != 2 or example.shape[1] <= length:
        return None
    return example[:1, :-length]


def _runs(call: Callable[..., Any], x: Tensor) -> bool:
    """Whether a model takes an input, in eval mode or not."""
    try:
        with torch.no_grad():
            call(x)
    except RUN_ERRORS:
        return False
    return True


def _reason(error: ValueError, anatomy: Anatomy) -> str:
    """Why the proof failed; if the head could not run for lack of something, only what it lacks."""
    lack = _said_of_left_out(anatomy)
    if lack and str(error).startswith(NOT_RUN):
        return lack
    return f"{error}; {lack}" if lack else str(error)


def _said_of_left_out(anatomy: Anatomy) -> str:
    """What the head cannot make of what the base model returns; "" if it can make all."""
    if not anatomy.left_out:
        return ""
    base_name = type(anatomy.base).__name__
    remedy = ""
    if anatomy.base_path:
        remedy = f". Split model.{anatomy.base_path} alone, and add what stands around it by hand"
    return f"the head lacks {', '.join(anatomy.left_out)} of what {base_name} returns{remedy}"


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
        reason = (
            "its forward does more around its layers than call each with what the one before "
            "returned"
        )
        if isinstance(error, NotOfProbe):
            reason = f"{error}, and does not only call them"
        raise ValueError(f"{type(model).__name__} is not split: {reason}; {BY_HAND}") from error
    for depth in range(1, len(of_all.calls)):
        try:
            _, of_first = stem(example, last_depth=depth, **inputs)
        except PART_ERRORS:  # its forward counts on so many layers
            return False
        if not same_bits(of_first.calls, of_all.calls[:depth]):
            return False
    return True


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


def _mask_keyword(stem: LayerInputs, layout: str) -> str | None:
    """The input that says which tokens count; the mask of a sound is about its samples instead."""
    is_of_tokens = layout == TOKENS and stem.main not in SOUNDS
    return MASK if is_of_tokens and MASK in stem.names else None


def _warn_of_tokens_behind(anatomy: Anatomy) -> None:
    """Say that attention maps hold tokens that stand behind the grid of an image, if any do."""
    embeddings = getattr(anatomy.base, "embeddings", None)
    tokens = getattr(embeddings, TOKENS_BEHIND, None)
    if isinstance(tokens, Tensor):
        logger.warning(
            "%s has %d detection tokens behind the grid of its image, and the attention maps of "
            "L_PSD hold them: leave them out, objective(x, target, mask=mask) with False there",
            type(anatomy.base).__name__,
            tokens.shape[-2],
        )


def _prefix_tokens(anatomy: Anatomy) -> int:
    """How many tokens the embeddings put before the grid of an image."""
    if anatomy.layout != TOKENS:
        return 0
    embeddings = getattr(anatomy.base, "embeddings", None)
    count = 0
    for name in PREFIX_TOKENS:
        token = getattr(embeddings, name, None)
        if isinstance(token, Tensor):
            num_channels = token.shape[-1]  # of (1, n, c), (n, c) or (c)
            count += token.numel() // num_channels
    return count
