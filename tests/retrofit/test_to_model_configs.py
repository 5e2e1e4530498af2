"""Ordinary transformers models of one depth: what their configs say of layers, and of the rest."""

from __future__ import annotations

import logging
from typing import Any, ClassVar

import pytest
import torch
import transformers
from torch import Tensor, nn

from elasticnet.retrofit import split as split_at
from elasticnet.retrofit import to_model
from elasticnet.retrofit.transformers import split
from elasticnet.retrofit.transformers.split_from import config_of_depth

hf: Any = transformers  # its configs are annotated too narrowly

SIZES: dict[str, Any] = {
    "hidden_size": 24,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
}
TEXT: dict[str, Any] = {
    **SIZES,
    "vocab_size": 40,
    "max_position_embeddings": 24,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
IDS = torch.randint(3, 38, (2, 9), generator=torch.Generator().manual_seed(1))


def llama_config(**entries: Any) -> Any:
    return hf.LlamaConfig(**{**TEXT, **entries})


def net_of(model: Any) -> Any:
    return split(model.eval(), IDS).wrap().eval()


# --- which entries are cut


def test_of_two_stacks_of_one_depth_the_one_that_was_split_is_cut() -> None:
    vision = hf.CLIPVisionConfig(**SIZES, image_size=16, patch_size=8)
    config = hf.LlavaConfig(
        vision_config=vision, text_config=llama_config(), image_token_index=39, image_seq_length=4
    )
    torch.manual_seed(0)
    net = net_of(hf.LlavaForConditionalGeneration(config))
    model = to_model(net, 2)
    assert model.config.text_config.num_hidden_layers == 2
    assert model.config.vision_config.num_hidden_layers == 3
    with torch.no_grad():
        assert torch.equal(model(IDS, use_cache=False).logits, net(IDS, depth=2))


class WithDraft(hf.LlavaConfig):
    """A config with a second part of the class of its text_config, behind it."""

    sub_configs: ClassVar[dict[str, Any]] = {
        **hf.LlavaConfig.sub_configs,
        "draft_config": hf.LlamaConfig,
    }
    draft_config: Any = None

    def __post_init__(self, **entries: Any) -> None:
        if isinstance(self.draft_config, dict):
            self.draft_config = hf.LlamaConfig(**self.draft_config)
        super().__post_init__(**entries)


def test_of_two_parts_of_one_class_the_one_that_the_layers_hold_is_cut() -> None:
    config = WithDraft(
        vision_config=hf.CLIPVisionConfig(**SIZES, image_size=16, patch_size=8),
        text_config=llama_config(),
        draft_config=llama_config(),
        image_token_index=39,
        image_seq_length=4,
    )
    torch.manual_seed(0)
    model = to_model(net_of(hf.LlavaForConditionalGeneration(config)), 2)
    assert model.config.text_config.num_hidden_layers == 2
    assert model.config.draft_config.num_hidden_layers == 3


def test_a_list_of_numbers_of_layers_loses_those_that_are_gone() -> None:
    config = hf.Qwen2MoeConfig(**TEXT, mlp_only_layers=[2, 1])
    assert config_of_depth(config, num_layers=3, depth=2).mlp_only_layers == [1]

    config = hf.Qwen2MoeConfig(**TEXT, mlp_only_layers=[2, 0, 1])  # as long as the layers
    assert config_of_depth(config, num_layers=3, depth=2).mlp_only_layers == [0, 1]


def test_a_list_of_switches_has_one_for_each_layer() -> None:
    config = llama_config(num_hidden_layers=2)
    config.no_rope_layers = [1, 0]
    assert config_of_depth(config, num_layers=2, depth=1).no_rope_layers == [1]


def test_a_mapping_by_the_numbers_of_layers_is_cut() -> None:
    config = llama_config()
    config.per_layer_settings = {"0": {"head_dim": 8}, "2": {"head_dim": 4}}
    cut = config_of_depth(config, num_layers=3, depth=2)
    assert cut.per_layer_settings == {"0": {"head_dim": 8}}


def test_xlstms_second_name_for_its_number_of_layers_is_changed_too() -> None:
    config = hf.xLSTMConfig(num_hidden_layers=3)
    cut = config_of_depth(config, num_layers=3, depth=2)
    assert (cut.num_hidden_layers, cut.num_blocks) == (2, 2)


def test_a_config_that_changes_what_it_is_told_of_a_layer_is_refused() -> None:
    class LastIsFull(hf.Qwen2Config):
        def __post_init__(self, **entries: Any) -> None:
            super().__post_init__(**entries)
            self.layer_types = [*self.layer_types[:-1], "full_attention"]

    config = LastIsFull(**TEXT, use_sliding_window=True, max_window_layers=0, sliding_window=512)
    assert config.layer_types == ["sliding_attention", "sliding_attention", "full_attention"]
    expected = (
        r"num_hidden_layers=2: it makes layer_types \['sliding_attention', 'full_attention'\]"
    )
    with pytest.raises(ValueError, match=expected):
        config_of_depth(config, num_layers=3, depth=2)


def test_a_config_that_changes_a_number_is_refused() -> None:
    class Halving(hf.LlamaConfig):
        window = 512

        def __post_init__(self, **entries: Any) -> None:
            super().__post_init__(**entries)
            self.window = self.window // 2

    with pytest.raises(ValueError, match="num_hidden_layers=2: it makes window 128 of 256"):
        config_of_depth(Halving(**TEXT, window=512), num_layers=3, depth=2)


# --- what the model keeps, and what it cannot


def test_the_code_of_the_experts_is_kept() -> None:
    torch.manual_seed(0)
    model = hf.MixtralForCausalLM(
        hf.MixtralConfig(**TEXT, num_local_experts=4, num_key_value_heads=2)
    )
    if not hasattr(model, "set_experts_implementation"):
        pytest.skip(f"transformers {transformers.__version__} has one code for experts")
    model.set_experts_implementation("batched_mm")
    shallow = to_model(net_of(model), 1)
    assert shallow.config._experts_implementation == "batched_mm"


def test_a_class_that_takes_more_than_a_config_is_refused_by_its_own_words() -> None:
    class WithOption(hf.LlamaForCausalLM):
        def __init__(self, config: Any, option: int) -> None:
            super().__init__(config)
            self.option = option

    torch.manual_seed(0)
    net = net_of(WithOption(llama_config(), option=1))
    with pytest.raises(ValueError, match=r"WithOption cannot be built of a config of 2 .*'option'"):
        to_model(net, 2)


def test_adapters_that_were_not_merged_before_the_split_are_refused() -> None:
    class LowRank(nn.Module):
        def __init__(self, base_layer: nn.Linear) -> None:
            super().__init__()
            self.base_layer = base_layer
            self.lora_a = nn.Linear(24, 2, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.base_layer(x)

    torch.manual_seed(0)
    model: Any = hf.LlamaForCausalLM(llama_config())
    for layer in model.model.layers:
        layer.self_attn.q_proj = LowRank(layer.self_attn.q_proj)
    net = net_of(model)
    with pytest.raises(ValueError, match=r"has model\.layers\.0\.self_attn\.q_proj\.weight where"):
        to_model(net, 2)


def test_adapters_around_the_net_are_to_be_merged() -> None:
    class Adapted(nn.Linear):
        def merge_and_unload(self) -> None: ...

    with pytest.raises(ValueError, match=r"a Adapted: .* what \.merge_and_unload\(\) returns"):
        to_model(Adapted(2, 2), 1)


def test_of_weights_that_depend_on_the_depth_the_first_part_is_kept() -> None:
    torch.manual_seed(0)
    whole: Any = hf.EsmForMaskedLM(hf.EsmConfig(**TEXT, mask_token_id=3))
    net = net_of(whole)
    model = to_model(net, 2)
    weight = model.esm.contact_head.regression.weight  # (1, layers times heads)
    assert torch.equal(weight, whole.esm.contact_head.regression.weight[:, :4])
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, net(IDS, depth=2))


def test_a_depth_without_attention_generates_without_a_cache(
    caplog: pytest.LogCaptureFixture,
) -> None:
    torch.manual_seed(0)
    config = hf.JambaConfig(
        **TEXT,
        num_key_value_heads=2,
        attn_layer_period=3,
        attn_layer_offset=2,
        num_experts=1,
        use_mamba_kernels=False,
        mamba_d_state=4,
    )
    net = net_of(hf.JambaForCausalLM(config))
    caplog.set_level(logging.WARNING, logger="elasticnet")
    model = to_model(net, 2)
    text = model.generate(IDS[:1], max_new_tokens=2, do_sample=False)
    assert text.shape == (1, 11)
    assert "JambaForCausalLM of this depth runs and generates without a cache" in caplog.text
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, net(IDS, depth=2))
    assert to_model(net, 3).generation_config.use_cache is not False


def test_a_model_that_never_has_attention_keeps_its_cache() -> None:
    torch.manual_seed(0)
    config = hf.MambaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=3, state_size=4)
    model = to_model(net_of(hf.MambaForCausalLM(config)), 2)
    assert model.generation_config.use_cache is not False
    assert model.generate(IDS[:1], max_new_tokens=2, do_sample=False).shape[0] == 1


def test_another_setting_of_a_block_is_refused() -> None:
    class Windowed(nn.Module):
        """A layer whose window is longer than the example."""

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.window = 8
            self.drop_rate = 0.0

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x[:, : self.window])

    blocks = [Windowed() for _ in range(3)]
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(*blocks), nn.Linear(4, 2)).eval()
    net: Any = split_at(model, "1", torch.randn(2, 6, 4)).wrap().eval()
    to_model(net, 2)
    net.blocks[1].drop_rate = 0.5
    to_model(net, 2)  # a setting of the training alone

    net.blocks[1].window = 16
    with pytest.raises(
        ValueError, match="block 2: its window is 8 in Sequential of depth 2, and 16"
    ):
        to_model(net, 2)
