"""Splits a tiny model of each transformers family; writes docs/guides/transformers_families.md.

    python tests/transformers_families.py

A family is what transformers calls a model type. Nothing is downloaded: a model is built of its
config with few and narrow layers. It takes about ten minutes on one core.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn
from transformers.models.auto import modeling_auto

from elasticnet._modules.kept_attributes import attributes_put_back
from elasticnet.retrofit.parts import Split
from elasticnet.retrofit.transformers import split
from elasticnet.retrofit.transformers.layer_list import BY_HAND, STAGES_REMEDY

hf: Any = transformers  # its configs are annotated too narrowly
auto: Any = modeling_auto

PAGE = Path(__file__).parent.parent / "docs" / "guides" / "transformers_families.md"
MAX_PARAMETERS = 3_000_000
NOISE = 0.05  # the standard deviation of what is added to the weights
WORKS = "works"
REFUSED = "refused"
RESULTS = (WORKS, REFUSED)
REMEDIES = (f". {STAGES_REMEDY}", f": {BY_HAND}", f"; {BY_HAND}")
# the first one that has a class for a config; the models of a family share their layers
CLASSES = (
    auto.MODEL_FOR_CAUSAL_LM_MAPPING,
    auto.MODEL_FOR_MASKED_LM_MAPPING,
    auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING,
    auto.MODEL_MAPPING,
)
NOT_FAMILIES = (
    "falcon_h1",  # its Mamba layers take minutes without their kernels
    # the same classes under another name
    "internlm3",
    "iquestcoder",
)

# What is made small in any config that has the entry.
SMALL: dict[str, Any] = {
    # the width
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "embed_dim"), 32),
    **dict.fromkeys(("head_dim", "d_kv", "d_head"), 8),
    **dict.fromkeys(("intermediate_size", "n_inner", "hidden_dim", "d_ff", "ffn_dim"), 48),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 48),
    # the depth
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 3),
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 3),
    # attention
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    "num_key_value_heads": 2,
    # mixtures of experts
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    "moe_intermediate_size": 16,
    "num_experts_per_tok": 2,
    # the input
    "vocab_size": 60,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_sequence_length"), 32),
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "image_size": 32,
    "patch_size": 8,
    "use_cache": False,
}

STAGES: dict[str, Any] = {"depths": [1, 1, 2, 1], "hidden_sizes": [8, 8, 16, 16]}
CONVOLUTIONS: dict[str, Any] = {
    "conv_dim": (16, 16),
    "conv_stride": (5, 2),
    "conv_kernel": (10, 3),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
SWIN: dict[str, Any] = {"embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
WORDS: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 60,
    "max_position_embeddings": 32,
}
LATENT_ATTENTION: dict[str, Any] = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "first_k_dense_replace": 1,
    "num_key_value_heads": 4,
    "n_group": 1,
    "topk_group": 1,
}


class Special(NamedTuple):
    """What a family needs besides.

    Attributes:
        entries: Entries of its config; None leaves one out that `SMALL` has.
        model: The name of the model's class, where the first of `CLASSES` is not meant.
        shape: The shape of its input, where the kind of input does not say it.
        options: Further arguments of `split`.
    """

    entries: Mapping[str, Any] = {}
    model: str | None = None
    shape: tuple[int, ...] | None = None
    options: Mapping[str, Any] = {}


SPECIAL: dict[str, Special] = {
    "audio-spectrogram-transformer": Special(
        {"max_length": 48, "num_mel_bins": 32}, shape=(2, 48, 32)
    ),
    "bit": Special({**STAGES, "embedding_size": 32, "num_groups": 2, "layer_type": "bottleneck"}),
    "clip": Special(
        {"vision_config": VISION, "text_config": WORDS}, model="CLIPForImageClassification"
    ),
    "clip_vision_model": Special(
        model="CLIPVisionModelWithProjection", options={"output": "image_embeds"}
    ),
    "codegen": Special({"rotary_dim": 4}),
    "convnext": Special(STAGES),
    "convnextv2": Special(STAGES),
    "data2vec-audio": Special({**CONVOLUTIONS, "num_conv_pos_embeddings": 2}),
    "deepseek_v2": Special(LATENT_ATTENTION),
    "deepseek_v3": Special(LATENT_ATTENTION),
    "dinov3_vit": Special({"num_register_tokens": 4}),
    "dpr": Special(model="DPRQuestionEncoder"),
    "efficientnet": Special({"width_coefficient": 0.25, "depth_coefficient": 0.3}),
    "falcon": Special({"head_dim": None}),
    "focalnet": Special({"embed_dim": 8, "depths": [1, 1, 2, 1]}),
    "funnel": Special({"num_hidden_layers": None, "block_sizes": [1, 1]}),
    "gpt_neo": Special(
        {"num_layers": 2, "num_hidden_layers": None, "attention_types": [[["global", "local"], 1]]}
    ),
    "gptj": Special({"rotary_dim": 4}),
    "hubert": Special(CONVOLUTIONS),
    "layoutlmv3": Special({"visual_embed": False, "coordinate_size": 4, "shape_size": 8}),
    "levit": Special({"hidden_sizes": [16, 16, 16], "num_attention_heads": [2, 2, 2]}),
    "lilt": Special({"channel_shrink_ratio": 2, "hidden_size": 48}),
    "mamba2": Special({"num_heads": 8, "n_groups": 1, "state_size": 8}),
    "mobilebert": Special({"embedding_size": 32, "intra_bottleneck_size": 32}),
    "mobilenet_v1": Special({"depth_multiplier": 0.25}),
    "mobilevit": Special({"hidden_sizes": [16, 16, 16], "neck_hidden_sizes": [8] * 7}),
    "mt5": Special(model="MT5EncoderModel"),
    "poolformer": Special({**STAGES}),
    "pvt": Special({**STAGES, "num_attention_heads": [1, 1, 2, 2]}),
    "pvt_v2": Special({**STAGES, "num_attention_heads": [1, 1, 2, 2]}),
    "regnet": Special({**STAGES, "embedding_size": 8, "groups_width": 4}),
    "resnet": Special({**STAGES, "embedding_size": 8}),
    "roc_bert": Special({"pronunciation_vocab_size": 30, "shape_vocab_size": 30}),
    "rwkv": Special({"rescale_every": 0}),
    "segformer": Special({**STAGES, "num_attention_heads": [1, 1, 2, 2]}),
    "sew": Special(CONVOLUTIONS),
    "sew-d": Special(CONVOLUTIONS),
    "siglip_vision_model": Special(options={"output": "pooler_output"}),
    "swin": Special({**SWIN, "patch_size": 4}),
    "swinv2": Special({**SWIN, "patch_size": 4}),
    "t5": Special(model="T5EncoderModel"),
    "timesformer": Special({"num_frames": 4}, shape=(2, 4, 3, 32, 32)),
    "umt5": Special(model="UMT5EncoderModel"),
    "unispeech": Special(CONVOLUTIONS),
    "unispeech-sat": Special(CONVOLUTIONS),
    "videomae": Special({"num_frames": 4}, shape=(2, 4, 3, 32, 32)),
    "vivit": Special({"num_frames": 4, "tubelet_size": [2, 8, 8]}, shape=(2, 4, 3, 32, 32)),
    "wav2vec2": Special({**CONVOLUTIONS, "output_hidden_size": 32}),
    "wav2vec2-bert": Special({"output_hidden_size": 32}, shape=(2, 60, 160)),
    "wav2vec2-conformer": Special({**CONVOLUTIONS, "output_hidden_size": 32}),
    "wavlm": Special({**CONVOLUTIONS, "output_hidden_size": 32}),
    "whisper": Special(
        {"num_mel_bins": 8, "max_source_positions": 10},
        model="WhisperForAudioClassification",
        shape=(2, 8, 20),
    ),
    "xlnet": Special({"max_position_embeddings": None}),
    "xmod": Special({"default_language": "en_XX"}),
}

INTRODUCTION = """\
# transformers families

What [`elasticnet.retrofit.transformers.split`](examples.md#transformers) makes of transformers
{version}: a tiny model of each family (a model type) with random weights. "Works" means that the
wrapped net's output equals the model's own bit for bit in eval mode, at two batch sizes and, for
text, with and without an attention mask; that each shorter net gives the same as the net at that
depth; and that each layer learns. A model that is refused can still be made elastic: wrap its parts
[by hand](your_network.md). Networks of stages, such as ResNet and Swin, are in timm, too, and there
[a split makes adapters](timm_families.md).

{counts} Families that the script cannot build with fewer than {millions} million parameters and
run on one input (models of several inputs, detectors, most pairs of encoder and decoder) are not in
the table.

Written by `python tests/transformers_families.py`. The tests repeat a sample of it in `make test`
and all in `make test-slow`.

| family | model | input | result | taps | layer, or why not |
| --- | --- | --- | --- | --- | --- |
"""


class NotBuilt(Exception):
    """The family has no model that is small and runs on one input."""


class Row(NamedTuple):
    """One line of the table, as it stands there."""

    family: str
    model: str
    input: str
    result: str
    taps: str
    note: str


class Built(NamedTuple):
    """A model with random weights, and an input of it.

    Attributes:
        model: The model.
        example: Its input.
        kind: The input in a word.
        inputs: Further inputs: an attention mask, for text.
        options: Further arguments of `split`.
    """

    model: Any
    example: Tensor
    kind: str
    inputs: dict[str, Tensor]
    options: Mapping[str, Any]


# --- models


def families() -> list[str]:
    """Return the model types of transformers, as far as they may be in the table."""
    return [family for family in hf.CONFIG_MAPPING if family not in NOT_FAMILIES]


def build(family: str) -> Built:
    """Return a tiny model of a family, which runs.

    Raises:
        NotBuilt: There is none.
    """
    special = SPECIAL.get(family, Special())
    try:
        config = tiny_config(family, special.entries)
        model_class = class_of(config, special.model)
        with torch.device("meta"):
            parameters = sum(value.numel() for value in model_class(config).parameters())
        if parameters > MAX_PARAMETERS:
            raise NotBuilt(f"{parameters} parameters")
        torch.manual_seed(0)
        model = model_class(config).eval()
        fill_zeros(model)
        kind, example = example_of(model, special.shape)
        # as a model that never ran: BigBird switches its attention in its first pass
        with attributes_put_back(model), torch.no_grad():
            model(example)
    # whatever the classes of several hundred families raise
    except Exception as error:
        raise NotBuilt(f"{type(error).__name__}: {error}") from error
    inputs = {"attention_mask": padding_mask(example)} if kind == "ids" else {}
    return Built(model, example, kind, inputs, special.options)


def fill_zeros(model: nn.Module) -> None:
    """Add small random numbers to all weights: zeros would hide what the parts leave out.

    Many classes begin with zeros in biases, class tokens and position embeddings.
    """
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.add_(NOISE * torch.randn(parameter.shape, generator=generator))


def tiny_config(family: str, entries: Mapping[str, Any]) -> Any:
    """Return the config of a small model."""
    config_class = hf.CONFIG_MAPPING[family]
    default = config_class()
    chosen: dict[str, Any] = {}
    for name, value in SMALL.items():
        # an entry that is a list or a dict is no number, and one that is missing is not made
        own = getattr(default, name, ())
        if own is None or isinstance(own, (int, float)):
            chosen[name] = value
    chosen.update(entries)
    return config_class(**{name: value for name, value in chosen.items() if value is not None})


def class_of(config: Any, name: str | None) -> Callable[[Any], nn.Module]:
    """Return the class of the model for a config."""
    if name is not None:
        return getattr(hf, name)
    for mapping in CLASSES:
        if type(config) in mapping:
            found = mapping[type(config)]
            return found[0] if isinstance(found, (list, tuple)) else found
    raise NotBuilt("transformers has no class for it")


def example_of(model: Any, shape: tuple[int, ...] | None) -> tuple[str, Tensor]:
    """Return what kind of input a model takes, and one of it."""
    generator = torch.Generator().manual_seed(1)
    config = model.config
    name = model.main_input_name
    if name == "input_ids":
        return "ids", torch.randint(3, 60, (2, 9), generator=generator)
    if name == "pixel_values":
        side = getattr(config, "image_size", 32)
        side = side if isinstance(side, int) else 32
        pixels_shape = shape or (2, getattr(config, "num_channels", 3), side, side)
        kind = "pixels" if len(pixels_shape) == 4 else "frames"
        return kind, torch.randn(pixels_shape, generator=generator)
    if name == "input_values":
        return "sound", torch.randn(shape or (2, 2000), generator=generator)
    if name == "input_features":
        mels = getattr(config, "num_mel_bins", 80)
        return "sound", torch.randn(shape or (2, mels, 60), generator=generator)
    raise NotBuilt(f"its input is {name}")


def padding_mask(ids: Tensor) -> Tensor:
    """Return a mask for which the first sample ends in padding."""
    mask = torch.ones_like(ids)
    mask[0, -3:] = 0
    return mask


# --- rows


def outcome(family: str, built: Built) -> tuple[Row, Split | None]:
    """Return a family's line, and the split where there is one."""
    model = built.model
    try:
        parts, note = _split_with_note(built)
    except ValueError as error:
        note = _reason(str(error))
        return Row(family, type(model).__name__, built.kind, REFUSED, "", note), None
    taps = str(len(parts.blocks))
    if parts.prefix_tokens:
        taps += f", {parts.prefix_tokens} prefix"
    return Row(family, type(model).__name__, built.kind, WORKS, taps, note), parts


def _reason(message: str) -> str:
    """What a message says of the model, without the remedies, which the page names once."""
    reason = message.partition(" is not split: ")[2] or message
    for remedy in REMEDIES:
        reason = reason.replace(remedy, "")
    reason = reason.partition(". If channels")[0].partition(". Split model.")[0]
    return reason.replace("|", "/").replace("\n", " ")


def _split_with_note(built: Built) -> tuple[Split, str]:
    """The parts, and the classes of the layers; which inputs they do not take, if so."""
    note = ""
    inputs: dict[str, Any] = {**built.options, **built.inputs}
    try:
        parts = split(built.model, built.example, **inputs)
    except ValueError:
        parts = split(built.model, built.example, **built.options)
        note = f", without {' and '.join(built.inputs)}" if built.inputs else ""
    kinds = sorted({type(block).__name__ for block in parts.blocks})
    return parts, ", ".join(kinds) + note


def rows(only: str | None = None) -> Iterator[Row]:
    """Yield the lines of the families that can be built, of all or of those with a text in them."""
    for family in families():
        if only is not None and only not in family:
            continue
        try:
            built = build(family)
        except NotBuilt as reason:
            if only is not None:
                print(f"{family}: not built: {reason}")
            continue
        row, _ = outcome(family, built)
        yield row


def page(table: Sequence[Row]) -> str:
    """Return the text of the documentation's page."""
    counts: list[str] = []
    for result in RESULTS:
        counts.append(f"{result}: {sum(row.result == result for row in table)}")
    introduction = INTRODUCTION.format(
        version=transformers.__version__,
        counts=f"{len(table)} families. {', '.join(counts)}.",
        millions=MAX_PARAMETERS // 1_000_000,
    )
    lines = [line(row._replace(model=f"`{row.model}`")) for row in table]
    return introduction + "".join(lines)


def line(row: Row) -> str:
    """Return a line of the table."""
    return f"| {' | '.join(row)} |\n"


def rows_of(text: str) -> list[Row]:
    """Return the lines of the table in a page."""
    table = text.partition("| --- |")[2].splitlines()[1:]
    found: list[Row] = []
    for each in table:
        cells = [cell.strip().strip("`") for cell in each.split("|")[1:-1]]
        found.append(Row._make(cells))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", help="print the lines of families whose name contains this, and write nothing"
    )
    only: Any = parser.parse_args().only
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    table: list[Row] = []
    for row in rows(only):
        table.append(row)
        print(line(row), end="", flush=True)
    if only is None:
        PAGE.write_text(page(table), encoding="utf-8")


if __name__ == "__main__":
    main()
