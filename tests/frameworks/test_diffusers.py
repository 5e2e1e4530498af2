"""diffusers: its diffusion transformer (DiT), wrapped by hand, gives its own output."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from contract import a_pass_goes_on_where_it_rested, depths_agree, one_pass, same
from elasticnet import ElasticWrapper

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
pytestmark = pytest.mark.slow


class Stem(nn.Module):
    """Patches and positions; the context is what every block of DiT is conditioned on."""

    def __init__(self, dit: Any) -> None:
        super().__init__()
        self.pos_embed = dit.pos_embed

    def forward(
        self, latent: Tensor, timestep: Tensor, class_labels: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return self.pos_embed(latent), {"timestep": timestep, "class_labels": class_labels}


def call_conditioned(
    block: nn.Module, tokens: Tensor, context: dict[str, Tensor], index: int
) -> tuple[Tensor, dict[str, Tensor]]:
    return block(tokens, **context), context


class Head(nn.Module):
    """DiT's last steps: a modulated norm, pixels of each patch, and the patches put together."""

    def __init__(self, dit: Any) -> None:
        super().__init__()
        self.embed = dit.transformer_blocks[0].norm1.emb
        self.modulate = dit.proj_out_1
        self.norm = dit.norm_out
        self.output = dit.proj_out_2
        self.patch_size = dit.config.patch_size

    def forward(self, tokens: Tensor, context: dict[str, Tensor]) -> Tensor:
        conditioning = self.embed(**context, hidden_dtype=tokens.dtype)
        shift, scale = self.modulate(nn.functional.silu(conditioning)).chunk(2, dim=1)
        tokens = self.norm(tokens) * (1 + scale[:, None]) + shift[:, None]
        patches = self.output(tokens)  # (b, rows * columns, p * p * c)

        b, num_patches, _ = patches.shape
        side = int(num_patches**0.5)
        p = self.patch_size
        patches = patches.reshape(b, side, side, p, p, -1)
        patches = torch.einsum("nhwpqc->nchpwq", patches)
        return patches.reshape(b, -1, side * p, side * p)


def test_a_dit_is_elastic_and_gives_its_own_output() -> None:
    torch.manual_seed(0)
    dit: Any = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        num_layers=3,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=20,
    ).eval()
    for parameter in dit.parameters():  # zeros at the start would hide an error
        nn.init.normal_(parameter, std=0.2)
    net = ElasticWrapper(
        dit.transformer_blocks,
        Head(dit),
        Stem(dit),
        head_skip="context",
        layout="b n c",
        call_block=call_conditioned,
    )
    latent = torch.randn(2, 4, 8, 8)
    conditions = {"timestep": torch.tensor([3, 500]), "class_labels": torch.tensor([1, 7])}
    with torch.no_grad():
        same(net.eval()(latent, **conditions), dit(latent, **conditions).sample, "full depth")
    # Not the whole contract: the head shares the conditioning with the first block.
    for invariant in (depths_agree, one_pass, a_pass_goes_on_where_it_rested):
        invariant(net, latent, **conditions)
