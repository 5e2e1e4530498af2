"""Ordinary models of one depth: equal to the net, of their own class, without this library."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from elasticnet import ElasticObjective, ElasticWrapper, load, save
from elasticnet.recalibration import recalibrate
from elasticnet.retrofit import split as split_at
from elasticnet.retrofit import to_model
from elasticnet.retrofit.timm import split as split_timm
from elasticnet.retrofit.torchvision import split as split_torchvision
from elasticnet.retrofit.transformers import split as split_transformer
from elasticnet.retrofit.transformers.split_from import config_of_depth

hf: Any = transformers  # its configs are annotated too narrowly

SIZES: dict[str, Any] = {"hidden_size": 24, "num_attention_heads": 2, "intermediate_size": 32}
TEXT: dict[str, Any] = {
    **SIZES,
    "vocab_size": 40,
    "max_position_embeddings": 24,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
KINDS = ["sliding_attention", "full_attention", "sliding_attention"]

IDS = torch.randint(3, 40, (3, 9), generator=torch.Generator().manual_seed(1))
PADDING = torch.ones(3, 9, dtype=torch.long)
PADDING[0, 6:] = 0
PIXELS = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def bert() -> Any:
    return hf.BertForMaskedLM(hf.BertConfig(**TEXT, num_hidden_layers=3))


def classifying_bert() -> Any:
    return hf.BertForSequenceClassification(hf.BertConfig(**TEXT, num_hidden_layers=3))


def gpt2() -> Any:
    sizes = {"n_embd": 24, "n_head": 2, "n_positions": 24, "n_layer": 3}
    return hf.GPT2LMHeadModel(
        hf.GPT2Config(**sizes, vocab_size=40, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    )


def gpt_neo_config() -> Any:
    kinds = [[["global", "local"], 1], [["global"], 1]]
    return hf.GPTNeoConfig(hidden_size=24, num_layers=3, num_heads=2, attention_types=kinds)


def llama() -> Any:
    return hf.LlamaForCausalLM(
        hf.LlamaConfig(**TEXT, num_hidden_layers=3, tie_word_embeddings=False)
    )


def qwen() -> Any:
    """Each layer has its kind of attention in the config."""
    config = hf.Qwen2Config(
        **TEXT,
        num_hidden_layers=3,
        num_key_value_heads=2,
        layer_types=KINDS,
        use_sliding_window=True,
        sliding_window=3,
    )
    return hf.Qwen2ForCausalLM(config)


def gemma() -> Any:
    """The rotary frequencies are those of the kinds of attention that the layers have."""
    config = hf.Gemma3TextConfig(
        **TEXT,
        num_hidden_layers=3,
        num_key_value_heads=2,
        head_dim=8,
        layer_types=KINDS,
        sliding_window=3,
    )
    return hf.Gemma3ForCausalLM(config)


def bart_decoder() -> Any:
    """Its config counts the layers of an encoder, too, which this model does not have."""
    sizes = {"d_model": 24, "decoder_attention_heads": 2, "decoder_ffn_dim": 32}
    config = hf.BartConfig(**sizes, decoder_layers=3, encoder_layers=2, vocab_size=40)
    return hf.BartForCausalLM(config)


TEXT_MODELS: dict[str, Callable[[], Any]] = {
    "bert": bert,
    "bert, classes": classifying_bert,
    "gpt2": gpt2,
    "llama": llama,
    "qwen": qwen,
    "gemma": gemma,
}
DECODERS = ["gpt2", "llama", "qwen", "gemma"]


def made(build: Callable[[], Any]) -> Any:
    torch.manual_seed(0)
    return build().eval()


def text_net(name: str) -> ElasticWrapper:
    return split_transformer(made(TEXT_MODELS[name]), IDS, attention_mask=PADDING).wrap().eval()


def vit(depth: int = 3) -> Any:
    return timm.models.VisionTransformer(
        img_size=16, patch_size=4, embed_dim=24, depth=depth, num_heads=2, num_classes=5
    )


def train_step(net: ElasticWrapper, x: Tensor, target: Tensor) -> None:
    """One step on all taps, which moves every weight."""
    net.train()
    objective = ElasticObjective(net, F.cross_entropy, psd_weight=0.1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    objective(x, target).total.backward()
    optimizer.step()
    net.eval()


def modules_of_this_library(model: nn.Module) -> list[str]:
    kinds = [type(module).__module__ for module in model.modules()]
    return [kind for kind in kinds if kind.startswith("elasticnet")]


# --- transformers


@pytest.mark.parametrize("name", TEXT_MODELS)
def test_a_transformers_model_of_every_depth_gives_the_nets_bits(name: str, tmp_path: Path) -> None:
    net = text_net(name)
    with torch.no_grad():
        for depth in net.taps:
            model = to_model(net, depth)
            assert model.config.num_hidden_layers == depth
            assert not model.training
            assert modules_of_this_library(model) == []

            model.save_pretrained(tmp_path / str(depth))
            again = type(model).from_pretrained(tmp_path / str(depth)).eval()
            for inputs in ({}, {"attention_mask": PADDING}):
                expected = net(IDS, depth=depth, **inputs)
                assert torch.equal(model(IDS, **inputs).logits, expected)
                assert torch.equal(again(IDS, **inputs).logits, expected)


@pytest.mark.parametrize("name", DECODERS)
def test_generating_with_a_cache_gives_what_the_net_predicts_token_by_token(name: str) -> None:
    net = text_net(name)
    for depth in net.taps:
        model = to_model(net, depth)
        ids = IDS[:1, :4]
        with torch.no_grad():
            for _ in range(8):
                prediction = net(ids, depth=depth)[:, -1].argmax(-1, keepdim=True)  # (1, 1)
                ids = torch.cat([ids, prediction], dim=1)
        generated = model.generate(
            IDS[:1, :4], max_new_tokens=8, do_sample=False, use_cache=True, eos_token_id=None
        )
        assert torch.equal(generated, ids)


def test_the_layers_of_a_decoder_alone_are_counted_as_the_decoders() -> None:
    net = split_transformer(made(bart_decoder), IDS).wrap().eval()
    model = to_model(net, 2)
    assert (model.config.decoder_layers, model.config.encoder_layers) == (2, 2)
    with torch.no_grad():
        assert torch.equal(model(IDS, use_cache=False).logits, net(IDS, depth=2))


def test_the_lists_of_a_config_that_speak_of_layers_are_cut() -> None:
    net = text_net("qwen")
    model = to_model(net, 2)
    assert model.config.layer_types == KINDS[:2]
    assert made(qwen).config.layer_types == KINDS


def test_gpt_neos_form_of_such_a_list_is_cut() -> None:
    config = config_of_depth(gpt_neo_config(), num_layers=3, depth=2)
    again = hf.GPTNeoConfig.from_dict(config.to_dict())
    assert again.num_layers == 2
    assert again.attention_layers == ["global", "local"]


def test_what_a_backbones_config_says_of_its_stages_is_left_out() -> None:
    config = config_of_depth(hf.Dinov2Config(num_hidden_layers=3), num_layers=3, depth=2)
    assert config.stage_names == ["stem", "stage1", "stage2"]


def test_a_config_that_does_not_say_how_many_layers_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="BertConfig is not cut: its num_hidden_layers is not 5"):
        config_of_depth(hf.BertConfig(num_hidden_layers=3), num_layers=5, depth=2)


def test_a_config_that_refuses_the_number_is_named() -> None:
    class OddConfig(hf.BertConfig):
        def __post_init__(self, **entries: Any) -> None:
            super().__post_init__(**entries)
            if self.num_hidden_layers % 2 == 0:
                raise TypeError("an even number")

    config = OddConfig(num_hidden_layers=3)
    with pytest.raises(ValueError, match="OddConfig takes no num_hidden_layers=2: an even number"):
        config_of_depth(config, num_layers=3, depth=2)


def test_the_way_of_generating_and_the_attention_of_the_model_are_kept() -> None:
    decoder = made(llama)
    decoder.generation_config.max_new_tokens = 3
    shallow = to_model(split_transformer(decoder, IDS).wrap().eval(), 1)
    assert shallow.generation_config.max_new_tokens == 3

    encoder = made(bert)
    encoder.set_attn_implementation("eager")
    shallow = to_model(split_transformer(encoder, IDS).wrap().eval(), 1)
    assert shallow.config._attn_implementation == "eager"


def test_tied_weights_stay_one_parameter() -> None:
    model = to_model(text_net("gpt2"), 2)
    assert model.lm_head.weight is model.transformer.wte.weight


def test_a_model_of_other_floats_keeps_them() -> None:
    model = made(llama).to(torch.float64)
    net = split_transformer(model, IDS).wrap().eval()
    shallow = to_model(net, 1)
    assert {parameter.dtype for parameter in shallow.parameters()} == {torch.float64}


def test_the_callers_random_numbers_are_not_touched() -> None:
    net = text_net("llama")
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    to_model(net, 1)
    assert torch.equal(torch.rand(3), expected)


def test_a_trained_truncated_or_grown_net_still_knows_its_model() -> None:
    net = text_net("llama")
    before = to_model(net, 3)
    train_step(net, IDS, torch.rand(3, 9, 40))
    small = net.truncate(2)

    def zero_last_layers(layer: Any) -> None:
        nn.init.zeros_(layer.self_attn.o_proj.weight)
        nn.init.zeros_(layer.mlp.down_proj.weight)

    grown = small.grow([small.blocks[1], small.blocks[1]], IDS, init=zero_last_layers)
    with torch.no_grad():
        trained = to_model(net, 3)
        assert not torch.equal(trained(IDS).logits, before(IDS).logits)
        for each in (net, small, grown):
            model = to_model(each, each.taps[-1])
            assert torch.equal(model(IDS).logits, each(IDS))
    assert to_model(grown, 4).config.num_hidden_layers == 4


def test_a_net_that_has_grown_repeats_the_kind_of_its_last_layer() -> None:
    net = text_net("qwen")

    def zero_last_layers(layer: Any) -> None:
        nn.init.zeros_(layer.self_attn.o_proj.weight)
        nn.init.zeros_(layer.mlp.down_proj.weight)

    grown = net.grow([net.blocks[2]], IDS, init=zero_last_layers)
    model = to_model(grown, 4)
    assert model.config.layer_types == [*KINDS, KINDS[-1]]


# --- timm and others


def test_a_timm_model_of_every_depth_loads_into_one_that_timm_creates() -> None:
    torch.manual_seed(0)
    net = split_timm(vit(), PIXELS).wrap().eval()
    train_step(net, PIXELS, torch.tensor([1, 4]))
    for depth in net.taps:
        model = to_model(net, depth)
        created = vit(depth)
        created.load_state_dict(model.state_dict())
        with torch.no_grad():
            assert torch.equal(created.eval()(PIXELS), net(PIXELS, depth=depth))
        assert len(model.feature_info) == len(model.blocks) == depth
        assert modules_of_this_library(model) == []


def test_a_staged_timm_model_is_cut_in_its_last_stage() -> None:
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=5).eval()
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    net = split_timm(model, x).wrap().eval()
    shallow = to_model(net, 1)
    assert len(shallow.layer4) == 1
    with torch.no_grad():
        assert torch.equal(shallow(x), net(x, depth=1))


def test_any_model_whose_blocks_are_a_list_is_cut() -> None:
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(8, 8), nn.GELU()) for _ in range(3)]
    body = nn.Sequential(*blocks)
    model = nn.Sequential(nn.Linear(4, 8), body, nn.Linear(8, 2)).eval()
    x = torch.randn(5, 6, 4)
    net = split_at(model, "1", x).wrap().eval()
    shallow = to_model(net, 2)
    assert list(shallow.state_dict()) == [
        key for key in model.state_dict() if not key.startswith("1.2.")
    ]
    assert torch.equal(shallow(x), net(x, depth=2))
    assert len(body) == 3


class ListOfBlocks(nn.Module):
    """A model that runs a ModuleList, which loses its last block first."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 8)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)  # (b, n, 8)
        for block in self.blocks:
            x = block(x).relu()
        return self.head(x)


def test_a_list_loses_any_number_of_its_last_blocks() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 6, 4)
    net = split_at(ListOfBlocks().eval(), "blocks", x).wrap().eval()
    for depth in net.taps:
        shallow = to_model(net, depth)
        assert len(shallow.blocks) == depth
        assert torch.equal(shallow(x), net(x, depth=depth))


def test_blocks_with_names_of_their_own_keep_them() -> None:
    sizes: dict[str, Any] = {"hidden_dim": 24, "mlp_dim": 32, "num_heads": 2, "num_classes": 5}

    def made(num_layers: int) -> Any:
        return VisionTransformer(image_size=16, patch_size=4, num_layers=num_layers, **sizes)

    torch.manual_seed(0)
    net = split_torchvision(made(4).eval(), PIXELS).wrap().eval()
    for depth in net.taps:
        model = to_model(net, depth)
        created = made(depth)
        created.load_state_dict(model.state_dict())
        with torch.no_grad():
            assert torch.equal(created.eval()(PIXELS), net(PIXELS, depth=depth))


def test_blocks_are_taken_out_before_what_stands_behind_them_in_one_sequence() -> None:
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(8, 8), nn.GELU()) for _ in range(3)]
    body = nn.Sequential(nn.Linear(4, 8), *blocks, nn.Linear(8, 2))
    model = nn.Sequential(body).eval()
    x = torch.randn(5, 6, 4)
    net = split_at(model, ["0.1", "0.2", "0.3"], x).wrap().eval()
    shallow = to_model(net, 1)
    assert [name for name, _ in shallow[0].named_children()] == ["0", "1", "4"]
    assert torch.equal(shallow(x), net(x, depth=1))


def test_the_net_holds_no_second_copy_of_the_weights() -> None:
    net = split_timm(vit(), PIXELS).wrap()
    source: Any = net.split_from
    held = {tensor.device.type for tensor in source.skeleton.state_dict().values()}
    assert held == {"meta"}
    assert not any(key.startswith("split_from") for key in net.state_dict())


def test_training_the_model_leaves_the_net_as_it_was() -> None:
    net = split_timm(vit(), PIXELS).wrap().eval()
    model = to_model(net, 2)
    before = net(PIXELS, depth=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert torch.equal(net(PIXELS, depth=2), before)


def test_a_loaded_net_knows_its_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save(split_timm(vit(), PIXELS).wrap().eval(), tmp_path / "net.safetensors")
    net = load(tmp_path / "net.safetensors", build=lambda: split_timm(vit(), PIXELS).wrap()).eval()
    assert torch.equal(to_model(net, 2)(PIXELS), net(PIXELS, depth=2))


def test_a_compiled_net_gives_its_model() -> None:
    net = split_timm(vit(), PIXELS).wrap().eval()
    block: Any = torch.compile(net.blocks[0], backend="eager")
    net.blocks[0] = block
    compiled: Any = torch.compile(net, backend="eager")
    model = to_model(compiled, 2)
    assert list(model.state_dict()) == list(vit(2).state_dict())


WITHOUT_THIS_LIBRARY = """
import sys
import torch
sys.modules["elasticnet"] = None  # importing it is an error from here on
folder = sys.argv[1]
x = torch.load(f"{folder}/x.pt")
expected = torch.load(f"{folder}/y.pt")
model = torch.load(f"{folder}/timm.pt", weights_only=False)
assert torch.equal(model(x), expected)

import transformers
model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
assert model.config.num_hidden_layers == 2
model.generate(torch.tensor([[5, 6]]), max_new_tokens=2, do_sample=False)
"""


def test_models_run_where_this_library_is_not_installed(tmp_path: Path) -> None:
    net = split_timm(vit(), PIXELS).wrap().eval()
    torch.save(to_model(net, 2), tmp_path / "timm.pt")
    torch.save(PIXELS, tmp_path / "x.pt")
    torch.save(net(PIXELS, depth=2).detach(), tmp_path / "y.pt")
    model = to_model(text_net("llama"), 2)
    model.save_pretrained(tmp_path)

    command = [sys.executable, "-c", WITHOUT_THIS_LIBRARY, str(tmp_path)]
    subprocess.run(command, check=True, cwd=tmp_path)


# --- refusals


def test_a_net_that_was_not_split_is_refused() -> None:
    net = ElasticWrapper([nn.Linear(4, 4)], nn.Linear(4, 2), layout="b c")
    with pytest.raises(ValueError, match="does not know a model that it was split from"):
        to_model(net, 1)
    with pytest.raises(ValueError, match="Linear: expected an ElasticWrapper"):
        to_model(nn.Linear(4, 4), 1)


def test_a_model_that_cannot_be_copied_is_split_all_the_same() -> None:
    model = vit()
    model.lock = threading.Lock()
    net = split_timm(model, PIXELS).wrap()
    assert net.split_from is None


def test_a_depth_without_a_tap_is_refused() -> None:
    net = split_timm(vit(), PIXELS).wrap(taps=[1, 3])
    with pytest.raises(ValueError, match="depth 2: this net has taps at depths 1, 3"):
        to_model(net, 2)


def test_a_tap_with_an_adapter_is_refused() -> None:
    model = timm.create_model("resnet18", num_classes=5).eval()
    net = split_timm(model, torch.randn(2, 3, 64, 64), stages=2).wrap()
    with pytest.raises(ValueError, match="depth 1: its tap has an adapter, for which ResNet has"):
        to_model(net, 1)


def test_a_changed_head_is_refused_by_the_name_of_what_changed() -> None:
    net: Any = split_timm(vit(), PIXELS).wrap()
    name = next(key for key in net.head.state_dict() if key.endswith("head.weight"))
    owner = net.head.get_submodule(name.removesuffix(".head.weight").removesuffix("head.weight"))
    owner.head = nn.Sequential(nn.Linear(24, 5))
    with pytest.raises(ValueError, match=r"the head is not VisionTransformer's: head\.0\.weight"):
        to_model(net, 2)
    net.head = nn.Identity()
    with pytest.raises(ValueError, match=r"the head is not VisionTransformer's: .* is missing"):
        to_model(net, 2)


def test_another_number_of_classes_is_refused_with_both_shapes() -> None:
    net: Any = text_net("bert, classes")
    net.head.model.classifier = nn.Linear(24, 7)
    with pytest.raises(ValueError, match=r"classifier\.weight has shape \(7, 24\) .*\(2, 24\)"):
        to_model(net, 2)


def test_weights_that_are_tied_in_the_model_alone_are_refused() -> None:
    net: Any = text_net("gpt2")
    net.head.model.lm_head.weight = nn.Parameter(torch.ones(40, 24))
    with pytest.raises(ValueError, match=r"one transformer\.wte\.weight, and two parts"):
        to_model(net, 2)


def test_another_function_is_refused_with_the_difference() -> None:
    net = text_net("llama")
    net.register_forward_hook(double)
    with pytest.raises(ValueError, match=r"depth 2: .* differs by up to .*the hook double"):
        to_model(net, 2)


def double(_net: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    return output * 2


def test_a_depth_that_the_model_never_had_is_refused() -> None:
    torch.manual_seed(0)
    net = split_timm(vit(2), PIXELS).wrap().eval()

    def zero_last_layers(block: Any) -> None:
        for layer in (block.attn.proj, block.mlp.fc2):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    grown = net.grow([net.blocks[1]], PIXELS, init=zero_last_layers)
    with pytest.raises(ValueError, match=r"block 3: the VisionTransformer .* had 2 blocks"):
        to_model(grown, 3)


def test_blocks_under_names_of_their_own_are_refused() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.second = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x))

    net = split_at(Named(), ["first", "second"], torch.randn(2, 6, 4)).wrap()
    with pytest.raises(ValueError, match="Named cannot be cut: its block second is not the last"):
        to_model(net, 1)


def test_a_recalibrated_head_gives_each_model_the_statistics_of_its_depth() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(*(nn.Sequential(nn.Conv2d(8, 8, 1), nn.Tanh()) for _ in range(3)))
    norm = nn.BatchNorm2d(8)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), layers, norm, nn.Flatten(), nn.Linear(128, 2)).eval()
    x = torch.randn(8, 3, 4, 4)
    net = split_at(model, "1", x).wrap().eval()

    recalibrate(net, [x])

    for depth in net.taps:
        ordinary = to_model(net, depth)
        statistics = net.head_statistics[str(depth)]
        (mean,) = [each for name, each in statistics.named_buffers() if name.endswith("mean")]
        assert torch.equal(ordinary.get_buffer("2.running_mean"), mean)
        assert torch.equal(ordinary(x), net(x, depth=depth))
