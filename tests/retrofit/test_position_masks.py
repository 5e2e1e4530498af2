"""Padding and class tokens of transformers models stay out of the self-distillation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elasticnet import ElasticObjective

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


def test_the_class_token_of_clip_is_no_position_of_the_map() -> None:
    config = transformers.CLIPVisionConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=8,
        patch_size=4,
    )
    model = transformers.CLIPVisionModel(config).eval()
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    assert split(model, images).wrap().prefix_tokens == 1
