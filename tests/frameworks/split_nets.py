"""Tiny models of timm and transformers, split, with a loss and a batch of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from elasticnet import ElasticObjective, ElasticWrapper

VOCABULARY = 50
NUM_CLASSES = 4
NUM_STEPS = 3


class Case(NamedTuple):
    """A net and what it is trained with.

    Attributes:
        net: The wrapped parts of a model.
        task_loss: Maps a prediction and a target to a scalar.
        x: The input, four rows.
        target: The target of these rows.
        keywords: Further inputs of these rows.
    """

    net: ElasticWrapper
    task_loss: Callable[[Any, Any], Tensor]
    x: Tensor
    target: Tensor
    keywords: dict[str, Tensor]


def words() -> Tensor:
    """Return token ids (4, 6)."""
    return torch.randint(VOCABULARY, (4, 6), generator=torch.Generator().manual_seed(5))


def mask() -> Tensor:
    """Return a mask (4, 6) that leaves out two tokens of the second row."""
    kept = torch.ones(4, 6, dtype=torch.long)
    kept[1, 4:] = 0
    return kept


def labels() -> Tensor:
    return torch.tensor([0, 2, 1, 3])


def next_token_loss(logits: Tensor, ids: Tensor) -> Tensor:
    predicted = logits[:, :-1].flatten(0, 1)  # (b (n - 1), vocabulary)
    return nn.functional.cross_entropy(predicted, ids[:, 1:].flatten())


def bert_model() -> Any:
    """Return a BERT of three layers without dropout, with the same weights each time."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    options: dict[str, Any] = {"num_labels": NUM_CLASSES}
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **options,
    )
    return BertForSequenceClassification(config).eval()


def gpt2_model() -> Any:
    """Return a GPT-2 of three layers without dropout, whose embeddings are its head's weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=16,
        n_layer=3,
        n_head=2,
        n_positions=8,
        bos_token_id=0,
        eos_token_id=0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return GPT2LMHeadModel(config).eval()


def bert() -> Case:
    from elasticnet.retrofit.transformers import split

    net = split(bert_model(), words(), attention_mask=mask()).wrap().double()
    return Case(net, nn.CrossEntropyLoss(), words(), labels(), {"attention_mask": mask()})


def gpt2() -> Case:
    from elasticnet.retrofit.transformers import split

    net = split(gpt2_model(), words()).wrap().double()
    return Case(net, next_token_loss, words(), words(), {})


def vit() -> Case:
    import timm

    from elasticnet.retrofit.timm import split

    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=3, num_classes=NUM_CLASSES
    )
    generator = torch.Generator().manual_seed(6)
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64, generator=generator)
    net = split(model.eval()).wrap().double()
    return Case(net, nn.CrossEntropyLoss(), images, labels(), {})


CASES: dict[str, Callable[[], Case]] = {"bert": bert, "gpt2": gpt2, "vit": vit}


def objective_of(case: Case) -> ElasticObjective:
    return ElasticObjective(case.net, case.task_loss, psd_weight=0.1)


def train_case(case: Case, objective: Any, rows: slice = slice(None)) -> None:
    """Train a net for a few steps on these rows of its batch."""
    optimizer = torch.optim.AdamW(case.net.parameters(), lr=1e-2)
    keywords = {name: value[rows] for name, value in case.keywords.items()}
    for _ in range(NUM_STEPS):
        optimizer.zero_grad()
        objective(case.x[rows], case.target[rows], **keywords).total.backward()
        optimizer.step()


def case_trained_plainly(name: str) -> dict[str, Tensor]:
    """Return the weights of a split model after the plain loop on one process."""
    case = CASES[name]()
    train_case(case, objective_of(case))
    return dict(case.net.state_dict())
