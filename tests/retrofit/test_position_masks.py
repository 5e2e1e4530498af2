"""Padding and class tokens of split models stay out of the self-distillation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from elasticnet import ElasticObjective
from elasticnet.distillation import progressive_distillation
from elasticnet.retrofit import split as split_traced

transformers: Any = pytest.importorskip("transformers")

from elasticnet.retrofit.transformers import split  # noqa: E402  (needs transformers)

WORDS = torch.randint(1, 50, (2, 6), generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
LABELS = torch.tensor([0, 1])


@pytest.fixture(scope="module")
def bert() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return transformers.BertForSequenceClassification(config).eval()


def psd_of(objective: ElasticObjective, words: Tensor, **keywords: Any) -> Tensor:
    return objective(words, LABELS, **keywords).distillation


def test_more_padding_changes_the_self_distillation_by_rounding_alone(bert: nn.Module) -> None:
    net = split(bert, WORDS, attention_mask=MASK).wrap()
    objective = ElasticObjective(net, nn.CrossEntropyLoss(), psd_weight=1.0)
    short = psd_of(objective, WORDS, attention_mask=MASK)
    padding = (0, 18)
    long = psd_of(objective, F.pad(WORDS, padding), attention_mask=F.pad(MASK, padding))
    torch.testing.assert_close(long, short, rtol=1e-4, atol=1e-6)
    assert net.mask_keyword == "attention_mask"
    assert psd_of(objective, WORDS) != short


def test_padding_on_the_left_changes_the_self_distillation_by_rounding_alone() -> None:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=50, n_embd=24, n_layer=3, n_head=2, n_positions=16, bos_token_id=0
    )
    net = split(transformers.GPT2LMHeadModel(config).eval(), WORDS).wrap()
    objective = ElasticObjective(net, mean_of_words, psd_weight=1.0)
    padding = (5, 0)

    alone = objective(WORDS, None).distillation
    padded = objective(
        F.pad(WORDS, padding),
        None,
        attention_mask=F.pad(torch.ones_like(WORDS), padding),
        position_ids=F.pad(torch.arange(6).expand(2, 6), padding),
    )

    torch.testing.assert_close(padded.distillation, alone, rtol=1e-4, atol=1e-6)


def mean_of_words(logits: Tensor, target: None) -> Tensor:
    return logits.mean()


def test_the_class_token_of_clip_is_no_position_of_the_map() -> None:
    assert split(image_model("CLIPVision"), IMAGES).wrap().prefix_tokens == 1


# --- models whose own forward takes no mask of tokens

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def image_model(name: str) -> Any:
    """Return a small model of images, two layers on 2 x 2 patches."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=8,
        patch_size=4,
    )
    return getattr(transformers, f"{name}Model")(config).eval()


def sound_model() -> Any:
    """Return a small model of sounds, whose `attention_mask` is about samples, not tokens."""
    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(8, 8),
        conv_kernel=(4, 4),
        conv_stride=(4, 4),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )
    return transformers.Wav2Vec2Model(config).eval()


class CalledWithMore(nn.Module):
    """A model whose blocks take more than x, so that a split of it has a context."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.blocks = nn.ModuleList([Shifted(), Shifted()])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)  # (b, n, 8)
        shift = x.mean(dim=1, keepdim=True)
        for block in self.blocks:
            x = block(x, shift)
        return x


class Shifted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        return x + self.linear(x + shift).relu()


def splits_without_a_mask() -> dict[str, Any]:
    """Return functions that make a net, and its input."""
    sounds = torch.randn(2, 64, generator=torch.Generator().manual_seed(2))
    return {
        "CLIPVision": lambda: (split(image_model("CLIPVision"), IMAGES).wrap(), IMAGES),
        "SiglipVision": lambda: (split(image_model("SiglipVision"), IMAGES).wrap(), IMAGES),
        "Wav2Vec2": lambda: (split(sound_model(), sounds).wrap(), sounds),
        "traced": lambda: (split_traced(CalledWithMore(), "blocks", IMAGES).wrap(), IMAGES),
    }


@pytest.mark.parametrize("name", splits_without_a_mask())
def test_a_mask_of_the_objective_reaches_the_self_distillation_of_any_split(name: str) -> None:
    torch.manual_seed(0)
    net, x = splits_without_a_mask()[name]()
    objective = ElasticObjective(net, mean_of_any, psd_weight=1.0)
    features = net(x, taps=net.taps).features
    counts = torch.ones(features[0].shape[:2], dtype=torch.bool)
    counts[:, -2:] = False
    expected = progressive_distillation(
        features, net.layout, prefix_tokens=net.prefix_tokens, mask=counts
    )

    masked = objective(x, None, mask=counts).distillation

    torch.testing.assert_close(masked, expected)
    assert masked != objective(x, None).distillation
    small = net.truncate(2)
    assert ElasticObjective(small, mean_of_any, 1.0)(x, None, mask=counts).distillation == masked


def mean_of_any(prediction: Any, target: None) -> Tensor:
    return tree_leaves(prediction)[0].mean()
