"""Files of transformers models: every depth, at several lengths, with and without a mask."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from elasticnet import ElasticWrapper
from elasticnet.export import ExportError, export, runner

transformers: Any = pytest.importorskip("transformers")
pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
MAX_TOKENS = 16
TEXT: dict[str, Any] = {**SIZES, "vocab_size": 60, "max_position_embeddings": MAX_TOKENS}
DECODER: dict[str, Any] = {**TEXT, "num_key_value_heads": 2}
IMAGES: dict[str, Any] = {**SIZES, "image_size": 32, "patch_size": 8}

IDS = torch.tensor([[3, 14, 15, 9, 26, 5], [35, 8, 9, 7, 1, 1]])
PADDED = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
PIXELS = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def bert() -> Any:
    return transformers.BertForSequenceClassification(transformers.BertConfig(**TEXT))


def llama() -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**DECODER))


def vit() -> Any:
    return transformers.ViTForImageClassification(transformers.ViTConfig(**IMAGES))


def dinov2() -> Any:
    return transformers.Dinov2ForImageClassification(transformers.Dinov2Config(**IMAGES))


def clip_vision() -> Any:
    return transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**IMAGES))


def distilbert() -> Any:
    config = transformers.DistilBertConfig(
        vocab_size=60, max_position_embeddings=MAX_TOKENS, dim=32, n_layers=3, n_heads=4
    )
    return transformers.DistilBertForSequenceClassification(config)


def gpt2() -> Any:
    config = transformers.GPT2Config(
        vocab_size=60, n_positions=MAX_TOKENS, n_embd=32, n_layer=3, n_head=4, bos_token_id=1
    )
    return transformers.GPT2LMHeadModel(config)


def qwen2() -> Any:
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**DECODER))


def qwen3() -> Any:
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**DECODER, head_dim=8))


def mixtral(**options: Any) -> Any:
    config = transformers.MixtralConfig(**DECODER, num_local_experts=4)
    return transformers.MixtralForCausalLM._from_config(config, **options)


TEXT_MODELS = [bert, llama, distilbert, gpt2, qwen2, qwen3]
IMAGE_MODELS = [vit, dinov2, clip_vision]


class Split(NamedTuple):
    net: ElasticWrapper
    example: Tensor
    keywords: Mapping[str, Tensor]


def split(build: Any, masked: bool = True) -> Split:
    from elasticnet.retrofit.transformers import split

    torch.manual_seed(0)
    model = build().eval()
    if build in IMAGE_MODELS:
        return Split(split(model, PIXELS).wrap(), PIXELS, {})
    keywords: dict[str, Any] = {"attention_mask": PADDED} if masked else {}
    return Split(split(model, IDS, **keywords).wrap(), IDS, keywords)


def check_text_file(parts: Split, depth: int, path: Path) -> None:
    """Export a depth, and compare the file with the net at lengths that export did not try."""
    axes: Any = {0: "batch", 1: ("tokens", 2, MAX_TOKENS)}

    export(parts.net, path, depth=depth, example=IDS, keywords=parts.keywords, axes=axes)

    run = runner(path)
    generator = torch.Generator().manual_seed(1)
    for batch, tokens in ((1, 3), (3, 11), (2, MAX_TOKENS)):
        ids = torch.randint(3, 60, (batch, tokens), generator=generator)
        keywords = {}
        if parts.keywords:
            mask = torch.ones_like(ids)
            mask[0, tokens - 1 :] = 0
            keywords = {"attention_mask": mask}
        with torch.no_grad():
            expected = parts.net(ids, depth=depth, **keywords)
        assert torch.allclose(run(ids, **keywords), expected, atol=1e-5)


@pytest.mark.parametrize("build", [bert, llama])
def test_a_masked_text_model_as_a_program(build: Any, tmp_path: Path) -> None:
    check_text_file(split(build), depth=2, path=tmp_path / "net.pt2")


def test_a_masked_text_model_as_an_onnx_file(tmp_path: Path) -> None:
    check_text_file(split(bert), depth=2, path=tmp_path / "net.onnx")


@pytest.mark.slow
def test_a_mixture_of_experts_as_an_onnx_file_says_what_to_try(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"at block 1 .*experts_implementation='batched_mm'"):
        check_text_file(split(mixtral), depth=1, path=tmp_path / "net.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_a_mixture_of_experts_in_batched_products(suffix: str, tmp_path: Path) -> None:
    batched = partial(mixtral, experts_implementation="batched_mm")

    check_text_file(split(batched), depth=2, path=tmp_path / f"net{suffix}")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("build", TEXT_MODELS)
def test_every_depth_of_masked_text_models(
    build: Any, depth: int, suffix: str, tmp_path: Path
) -> None:
    check_text_file(split(build), depth, path=tmp_path / f"net{suffix}")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
@pytest.mark.parametrize("build", TEXT_MODELS)
def test_text_models_without_a_mask(build: Any, suffix: str, tmp_path: Path) -> None:
    check_text_file(split(build, masked=False), depth=2, path=tmp_path / f"net{suffix}")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("build", IMAGE_MODELS)
def test_every_depth_of_image_models(build: Any, depth: int, suffix: str, tmp_path: Path) -> None:
    net = split(build).net

    written = export(net, tmp_path / f"net{suffix}", depth=depth, example=PIXELS)

    images = torch.rand(5, 3, 32, 32)
    with torch.no_grad():
        expected = net(images, depth=depth)
    assert torch.allclose(runner(written.path)(images), expected, atol=1e-5)
