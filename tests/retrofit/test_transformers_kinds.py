"""transformers models of other kinds: encoders of T5 and Whisper, CLIP, DeBERTa, layerdrop."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from elasticnet import ElasticObjective
from elasticnet.distillation import progressive_distillation
from elasticnet.retrofit.transformers import split

hf: Any = transformers  # its configs are annotated too narrowly
SIZES: dict[str, Any] = {"hidden_size": 24, "num_attention_heads": 2, "intermediate_size": 32}
VISION: dict[str, Any] = {**SIZES, "image_size": 16, "patch_size": 4}
TEXT: dict[str, Any] = {**SIZES, "vocab_size": 40, "max_position_embeddings": 24}
T5: dict[str, Any] = {"vocab_size": 40, "d_model": 24, "num_heads": 2, "d_ff": 32, "d_kv": 8}
BART: dict[str, Any] = {"vocab_size": 40, "d_model": 24, "decoder_attention_heads": 2}
WHISPER: dict[str, Any] = {
    "d_model": 24,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "num_mel_bins": 8,
    "max_source_positions": 10,
}
WAV2VEC2: dict[str, Any] = {
    **SIZES,
    "conv_dim": (16, 16),
    "conv_stride": (5, 2),
    "conv_kernel": (10, 3),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": 20,
}
STAGES: dict[str, Any] = {"depths": [1, 1, 2, 1], "hidden_sizes": [8, 8, 16, 16]}

IDS = torch.randint(3, 40, (2, 9), generator=torch.Generator().manual_seed(1))
PIXELS = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
LARGER_PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
MELS = torch.randn(2, 8, 20, generator=torch.Generator().manual_seed(1))
SOUND = torch.randn(2, 400, generator=torch.Generator().manual_seed(1))

Build = Callable[[int], Any]
# a model by its number of layers, an input, and which output is compared
MODELS: dict[str, tuple[Build, Tensor, str]] = {
    "t5 encoder": (
        lambda n: hf.T5EncoderModel(hf.T5Config(**T5, num_layers=n)),
        IDS,
        "last_hidden_state",
    ),
    "bart decoder": (
        lambda n: hf.BartForCausalLM(hf.BartConfig(**BART, decoder_layers=n, encoder_layers=n)),
        IDS,
        "logits",
    ),
    "whisper encoder": (
        lambda n: hf.WhisperForAudioClassification(hf.WhisperConfig(**WHISPER, encoder_layers=n)),
        MELS,
        "logits",
    ),
    "deberta v2": (
        lambda n: hf.DebertaV2ForSequenceClassification(
            hf.DebertaV2Config(**TEXT, num_hidden_layers=n)
        ),
        IDS,
        "logits",
    ),
    "dinov3": (
        lambda n: hf.DINOv3ViTModel(
            hf.DINOv3ViTConfig(**VISION, num_hidden_layers=n, num_register_tokens=2)
        ),
        PIXELS,
        "pooler_output",
    ),
    "clip with projection": (
        lambda n: hf.CLIPVisionModelWithProjection(
            hf.CLIPVisionConfig(**VISION, num_hidden_layers=n, projection_dim=6)
        ),
        PIXELS,
        "image_embeds",
    ),
    "nanochat, whose norm runs before the layers, too": (
        lambda n: hf.NanoChatForCausalLM(
            hf.NanoChatConfig(**TEXT, num_hidden_layers=n, num_key_value_heads=2)
        ),
        IDS,
        "logits",
    ),
    "wav2vec 2": (
        lambda n: hf.Wav2Vec2ForCTC(hf.Wav2Vec2Config(**WAV2VEC2, num_hidden_layers=n)),
        SOUND,
        "logits",
    ),
    "wavlm": (
        lambda n: hf.WavLMForCTC(hf.WavLMConfig(**WAV2VEC2, num_hidden_layers=n)),
        SOUND,
        "logits",
    ),
}


def made(build: Build, depth: int) -> Any:
    torch.manual_seed(0)
    return build(depth).eval()


TRANSFORMERS = tuple(map(int, hf.__version__.split(".")[:2]))
BUILT_OTHERWISE = ("clip with projection", "clip text with projection", "wav2vec2 with layerdrop")


def _skip_if_built_otherwise(name: str) -> None:
    """Skip what transformers 5.20 was seen to build otherwise than 5.23, which is pinned."""
    if name in BUILT_OTHERWISE and TRANSFORMERS < (5, 23):
        pytest.skip(f"{name}: transformers {hf.__version__} is older than 5.23")


@pytest.mark.parametrize("name", MODELS)
def test_every_depth_is_the_model_of_so_many_layers(name: str) -> None:
    _skip_if_built_otherwise(name)
    build, x, output = MODELS[name]
    model = made(build, 3)
    net = split(model, x, output=output).wrap().eval()
    state = model.state_dict()
    with torch.no_grad():
        for depth in net.taps:
            shorter = made(build, depth)
            shorter.load_state_dict({key: state[key] for key in shorter.state_dict()})

            assert torch.equal(net(x, depth=depth), shorter(x)[output])
            assert torch.equal(net.truncate(depth)(x), shorter(x)[output])


@pytest.mark.parametrize("name", ["t5 encoder", "deberta v2", "clip with projection"])
def test_every_parameter_that_the_output_needs_is_trained(name: str) -> None:
    _skip_if_built_otherwise(name)
    build, x, output = MODELS[name]
    net = split(made(build, 2), x, output=output).wrap().train()

    net(x).sum().backward()

    missing = [key for key, parameter in net.named_parameters() if parameter.grad is None]
    assert missing == []


def test_prefix_tokens_are_counted() -> None:
    _skip_if_built_otherwise("clip with projection")
    for name, expected in (("clip with projection", 1), ("dinov3", 3), ("t5 encoder", 0)):
        build, x, output = MODELS[name]
        assert split(made(build, 2), x, output=output).prefix_tokens == expected


RWKV: dict[str, Any] = {"vocab_size": 40, "hidden_size": 24, "num_hidden_layers": 3}
REFUSED: dict[str, tuple[Callable[[], Any], Tensor, str]] = {
    "resnet": (
        lambda: hf.ResNetForImageClassification(hf.ResNetConfig(**STAGES, embedding_size=8)),
        LARGER_PIXELS,
        r"stages change the shape .* at resnet.encoder.stages.1 from \(2, 8, 8, 8\) to "
        r"\(2, 8, 4, 4\).*retrofit.timm.split",
    ),
    "convnext": (
        lambda: hf.ConvNextForImageClassification(hf.ConvNextConfig(**STAGES)),
        LARGER_PIXELS,
        r"stages change the shape .* at convnext.encoder.stages.1",
    ),
    "vit mae": (
        lambda: hf.ViTMAEModel(hf.ViTMAEConfig(**VISION, num_hidden_layers=2)),
        PIXELS,
        "ViTMAEModel gives another output each time, in eval mode, too",
    ),
    "clip text with projection": (
        lambda: hf.CLIPTextModelWithProjection(
            hf.CLIPTextConfig(**TEXT, num_hidden_layers=2, eos_token_id=2)
        ),
        IDS,
        r"lacks pooler_output of what CLIPTextModel returns. Split model.text_model alone",
    ),
    "clip": (
        lambda: hf.CLIPModel(
            hf.CLIPConfig(vision_config=VISION, text_config={**TEXT, "num_hidden_layers": 1})
        ),
        IDS,
        r"does not run on the example .*: pass its other inputs by name, or split the part",
    ),
    "rwkv": (
        lambda: hf.RwkvForCausalLM(hf.RwkvConfig(**RWKV, rescale_every=2)),
        IDS,
        r"rescale_every=2 .* Set model.config.rescale_every = 0 first",
    ),
    "t5": (
        lambda: hf.T5Model(hf.T5Config(**T5, num_layers=2)),
        IDS,
        r"no encoder and decoder. Its encoder is split by itself: model.get_encoder\(\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_refused_in_our_words(name: str) -> None:
    _skip_if_built_otherwise(name)
    build, x, message = REFUSED[name]
    model = build().eval()
    output = "text_embeds" if "text" in name else None
    with pytest.raises(ValueError, match=f"^{type(model).__name__} is not split: .*{message}"):
        split(model, x, output=output)


def mean_of_words(n: int) -> Any:
    """A head that averages over the words, padding left out."""
    config = hf.ModernBertConfig(
        **TEXT,
        num_hidden_layers=n,
        classifier_pooling="mean",
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        cls_token_id=1,
        sep_token_id=2,
    )
    return hf.ModernBertForSequenceClassification(config)


def mean_of_sound(n: int) -> Any:
    """A head that averages over the frames, padding left out."""
    return hf.Wav2Vec2ForSequenceClassification(hf.Wav2Vec2Config(**WAV2VEC2, num_hidden_layers=n))


def question(n: int) -> Any:
    """A model that refuses ids beside embeddings."""
    return hf.DPRQuestionEncoder(hf.DPRConfig(**TEXT, num_hidden_layers=n))


@pytest.mark.parametrize(
    ("build", "x", "output"),
    [
        (mean_of_words, IDS, "logits"),
        (mean_of_sound, SOUND, "logits"),
        (question, IDS, "pooler_output"),
    ],
)
def test_the_mask_reaches_the_head(build: Build, x: Tensor, output: str) -> None:
    model = made(build, 2)
    mask = torch.ones(x.shape, dtype=torch.long)
    mask[0, x.shape[1] // 2 :] = 0
    net = split(model, x, attention_mask=mask).wrap().eval()
    shorter = made(build, 1)
    state = model.state_dict()
    shorter.load_state_dict({key: state[key] for key in shorter.state_dict()})
    with torch.no_grad():
        for inputs in ({}, {"attention_mask": mask}):
            assert torch.equal(net(x, **inputs), model(x, **inputs)[output])
            assert torch.equal(net(x, depth=1, **inputs), shorter(x, **inputs)[output])


def test_the_mask_of_a_sound_is_no_mask_of_the_features() -> None:
    assert split(made(mean_of_sound, 2), SOUND).mask_keyword is None
    assert split(made(mean_of_words, 2), IDS).mask_keyword == "attention_mask"


def layerdrop_net(layerdrop: float) -> tuple[Any, Any]:
    """A speech encoder and its net, without any other randomness in training."""
    config = hf.Wav2Vec2Config(
        **WAV2VEC2,
        num_hidden_layers=3,
        layerdrop=layerdrop,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        final_dropout=0.0,
        apply_spec_augment=False,
    )
    model = made(lambda _: hf.Wav2Vec2ForCTC(config), 3)
    return model.train(), split(model, SOUND).wrap().train()


def test_layerdrop_leaves_out_the_layers_that_the_model_would() -> None:
    _skip_if_built_otherwise("wav2vec2 with layerdrop")
    model, net = layerdrop_net(0.5)
    different = set()
    with torch.no_grad():
        for seed in range(8):
            torch.manual_seed(seed)
            expected = model(SOUND).logits
            torch.manual_seed(seed)
            assert torch.equal(net(SOUND), expected)
            different.add(float(expected.sum()))
    assert len(different) > 2


def test_a_training_pass_may_leave_out_all_layers() -> None:
    model, net = layerdrop_net(1.0)
    with torch.no_grad():
        taps = net(SOUND, taps=net.taps)
        assert torch.equal(taps.features[0], taps.features[2])
        assert torch.equal(net(SOUND), model(SOUND).logits)
        assert not torch.equal(net.eval()(SOUND), taps.predictions[-1])


def test_a_layer_that_writes_in_place_gets_copies() -> None:
    class Adding(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            return hidden_states.add_(self.layer(hidden_states, *args, **kwargs))

    model = made(lambda n: hf.BertModel(hf.BertConfig(**TEXT, num_hidden_layers=n)), 2)
    assert not split(model, IDS).copy_features
    model.encoder.layer[1] = Adding(model.encoder.layer[1])

    parts = split(model, IDS)

    assert parts.copy_features
    with torch.no_grad():
        net = parts.wrap().eval()
        assert torch.equal(net(IDS), model(IDS).last_hidden_state)
        assert torch.equal(net(IDS, depth=1), net(IDS, taps=net.taps).predictions[0])


def test_what_is_added_between_layers_is_seen_as_long_as_it_is_zero() -> None:
    config = hf.YolosConfig(**SIZES, image_size=[16, 16], patch_size=4, num_hidden_layers=3)
    model = hf.YolosModel(config).eval()
    added = model.encoder.interpolation.mid_position_embeddings
    assert torch.equal(added, torch.zeros_like(added))
    with pytest.raises(ValueError, match=r"between encoder\.layer\.0 and encoder\.layer\.1"):
        split(model, PIXELS)


def test_tokens_behind_the_grid_are_said_and_left_out_by_a_mask(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sizes = {"image_size": [16, 16], "patch_size": 4, "num_detection_tokens": 4}
    config = hf.YolosConfig(
        **SIZES, **sizes, num_hidden_layers=3, use_mid_position_embeddings=False
    )
    torch.manual_seed(0)
    caplog.set_level(logging.WARNING, logger="elasticnet")
    net = split(hf.YolosModel(config).eval(), PIXELS).wrap().eval()
    assert "YolosModel has 4 detection tokens behind the grid" in caplog.text

    objective = ElasticObjective(net, nn.functional.mse_loss, psd_weight=1.0)
    mask = torch.ones(2, 1 + 16 + 4, dtype=torch.bool)
    mask[:, -4:] = False
    target = torch.zeros(2, 21, 24)
    terms = objective(PIXELS, target, mask=mask)
    features = [each[:, :17] for each in net(PIXELS, taps=net.taps).features]
    expected = progressive_distillation(features, layout="b n c", prefix_tokens=1)
    assert torch.allclose(terms.distillation, expected)


def test_what_a_forward_does_to_some_lengths_alone_is_seen() -> None:
    config = hf.SEWConfig(**WAV2VEC2, num_hidden_layers=3, squeeze_factor=2)
    torch.manual_seed(0)
    model = hf.SEWForSequenceClassification(config).eval()
    frames = config.inputs_to_logits_ratio
    with pytest.raises(ValueError, match=r"for an input of shape \(1, 400\), the parts do not"):
        split(model, torch.randn(2, 400 + frames))


def test_the_mean_of_two_tokens_is_pooled_as_the_model_does_it() -> None:
    config = hf.ASTConfig(**SIZES, num_hidden_layers=3, max_length=48, num_mel_bins=32)
    torch.manual_seed(0)
    model = hf.ASTForAudioClassification(config).eval()
    embeddings = model.audio_spectrogram_transformer.embeddings
    with torch.no_grad():  # both are zeros, and so the same, in a new model
        embeddings.cls_token.normal_()
        embeddings.distillation_token.normal_()
    x = torch.randn(2, 48, 32)
    net = split(model, x).wrap().eval()
    with torch.no_grad():
        assert torch.equal(net(x), model(x).logits)


def test_what_a_forward_reads_of_its_layers_is_named() -> None:
    config = hf.XmodConfig(**TEXT, num_hidden_layers=3, default_language="en_XX", is_decoder=True)
    expected = "its forward reads 'output' of its layers, and does not only call them"
    with pytest.raises(ValueError, match=expected):
        split(hf.XmodForCausalLM(config).eval(), IDS)


def test_an_attention_that_depends_on_the_length_is_refused_with_the_way() -> None:
    config = hf.BigBirdConfig(**TEXT, num_hidden_layers=3, block_size=2, num_random_blocks=1)
    model = hf.BigBirdForMaskedLM(config).eval()
    with pytest.raises(ValueError, match="model with attention_type='original_full' in its config"):
        split(model, IDS)
    config.attention_type = "original_full"
    model = hf.BigBirdForMaskedLM(config).eval()
    net = split(model, IDS).wrap().eval()
    with torch.no_grad():
        assert torch.equal(net(IDS), model(IDS).logits)
