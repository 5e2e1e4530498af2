"""transformers models with random weights, with and without masks and padding."""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from contract import check_contract
from elasticnet import ElasticObjective
from elasticnet._modules.compare import same_bits
from elasticnet.retrofit.transformers import split

hf: Any = transformers  # its configs are annotated too narrowly
SIZES: dict[str, Any] = {"hidden_size": 24, "num_attention_heads": 2, "intermediate_size": 32}
TEXT = {
    **SIZES,
    "vocab_size": 40,
    "max_position_embeddings": 24,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GPT2 = {
    "vocab_size": 40,
    "n_embd": 24,
    "n_head": 2,
    "n_positions": 24,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SLIDING = {
    "tie_word_embeddings": False,
    "head_dim": 8,
    "num_key_value_heads": 2,
    "sliding_window": 3,
}
KINDS = ["sliding_attention", "full_attention", "sliding_attention"]

IDS = torch.randint(3, 40, (3, 9), generator=torch.Generator().manual_seed(1))
PADDING = torch.ones(3, 9, dtype=torch.long)
PADDING[0, 6:] = 0  # on the right
PADDING[1, :2] = 0  # on the left
PIXELS = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))

TEXT_MODELS: dict[str, Callable[[int], Any]] = {
    "bert": lambda n: hf.BertModel(hf.BertConfig(**TEXT, num_hidden_layers=n)),
    "bert, masked words": lambda n: hf.BertForMaskedLM(hf.BertConfig(**TEXT, num_hidden_layers=n)),
    "bert, classes": lambda n: hf.BertForSequenceClassification(
        hf.BertConfig(**TEXT, num_hidden_layers=n)
    ),
    "roberta": lambda n: hf.RobertaForTokenClassification(
        hf.RobertaConfig(**TEXT, num_hidden_layers=n)
    ),
    "gpt2": lambda n: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2, n_layer=n)),
    "gpt2, untied": lambda n: hf.GPT2LMHeadModel(
        hf.GPT2Config(**GPT2, n_layer=n, tie_word_embeddings=False)
    ),
    "gpt2, classes": lambda n: hf.GPT2ForSequenceClassification(
        hf.GPT2Config(**GPT2, n_layer=n, pad_token_id=0)
    ),
    "llama": lambda n: hf.LlamaForCausalLM(hf.LlamaConfig(**TEXT, num_hidden_layers=n)),
    "gemma": lambda n: hf.Gemma3ForCausalLM(
        hf.Gemma3TextConfig(**TEXT, **SLIDING, num_hidden_layers=n, layer_types=KINDS[:n])
    ),
}


def vit(depth: int) -> Any:
    config = hf.ViTConfig(
        **SIZES, image_size=16, patch_size=4, num_hidden_layers=depth, num_labels=5
    )
    return hf.ViTForImageClassification(config)


def made(build: Callable[[int], Any], depth: int = 3) -> Any:
    torch.manual_seed(0)
    return build(depth).eval()


def own(model: Any, *args: Any, **inputs: Any) -> Tensor:
    outputs = model(*args, **inputs)
    return outputs.logits if "logits" in outputs else outputs.last_hidden_state


def shorter(build: Callable[[int], Any], model: Any, depth: int) -> Any:
    small = made(build, depth)
    state = model.state_dict()
    small.load_state_dict({key: state[key] for key in small.state_dict()})
    return small


@pytest.mark.parametrize("name", TEXT_MODELS)
def test_text_models_at_every_depth_with_and_without_masks(name: str) -> None:
    """The oracle: the model that the library builds with fewer layers, given the same weights."""
    model = made(TEXT_MODELS[name])
    parts = split(model, IDS, attention_mask=PADDING)
    assert (parts.layout, parts.prefix_tokens) == ("b n c", 0)
    net = parts.wrap().eval()
    cases: list[dict[str, Tensor]] = [
        {},
        {"attention_mask": PADDING},
        {"attention_mask": torch.ones_like(PADDING)},
    ]
    with torch.no_grad():
        assert not torch.equal(net(IDS), net(IDS, attention_mask=PADDING))
        for depth in net.taps:
            small = shorter(TEXT_MODELS[name], model, depth)
            for inputs in cases:
                assert torch.equal(net(IDS, depth=depth, **inputs), own(small, IDS, **inputs)), (
                    depth,
                    inputs,
                )
            assert torch.equal(net(IDS[:1, :5], depth=depth), own(small, IDS[:1, :5]))


def test_what_stands_behind_the_mask_does_not_count() -> None:
    model = made(TEXT_MODELS["bert, classes"])
    net = split(model, IDS, attention_mask=PADDING).wrap().eval()
    mask = PADDING[[0, 0, 2]]
    other = torch.where(mask == 1, IDS, 7)
    with torch.no_grad():
        expected = net(IDS, depth=2, attention_mask=mask)
        torch.testing.assert_close(net(other, depth=2, attention_mask=mask), expected)
        assert not torch.equal(net(other, depth=2), expected)


def test_further_inputs_reach_the_model() -> None:
    model = made(TEXT_MODELS["bert"])
    types, positions = (IDS > 20).long(), torch.arange(9).flip(0)[None]
    net = split(model, IDS).wrap().eval()
    with torch.no_grad():
        for inputs in ({"token_type_ids": types}, {"position_ids": positions}):
            assert torch.equal(net(IDS, **inputs), own(model, IDS, **inputs))


def test_vit_at_every_depth() -> None:
    model = made(vit)
    parts = split(model, PIXELS)
    assert (parts.layout, parts.prefix_tokens, parts.head_skip) == ("b n c", 1, None)
    net = parts.wrap().eval()
    with torch.no_grad():
        for depth in net.taps:
            assert torch.equal(net(PIXELS, depth=depth), shorter(vit, model, depth)(PIXELS).logits)


@pytest.mark.parametrize("name", ["vit", "bert", "roberta", "gpt2, untied", "gemma"])
def test_contract(name: str) -> None:
    if name == "vit":
        check_contract(split(made(vit, 2), PIXELS).wrap(), PIXELS)
        return
    net = split(made(TEXT_MODELS[name], 2), IDS).wrap()
    check_contract(net, IDS)
    check_contract(net, IDS, attention_mask=PADDING)


def test_the_parts_are_the_models_own_and_the_model_stays_as_it_was() -> None:
    model = made(TEXT_MODELS["gpt2, untied"])
    names = [name for name, _ in model.named_modules()]
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    net = split(model, IDS, attention_mask=PADDING).wrap()
    assert [name for name, _ in model.named_modules()] == names
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert {id(parameter) for parameter in net.parameters()} == {
        id(parameter) for parameter in model.parameters()
    }
    assert list(net.blocks) == list(model.transformer.h)
    keys = {"stem.base.wte.weight", "head.model.transformer.ln_f.bias", "head.model.lm_head.weight"}
    assert keys <= set(net.state_dict())


def test_training_with_both_losses_trains_the_model_itself() -> None:
    model = made(TEXT_MODELS["gpt2"])  # its output layer is its embedding
    net = split(model, IDS, attention_mask=PADDING).wrap().train()
    assert {id(parameter) for parameter in net.parameters()} == {
        id(parameter) for parameter in model.parameters()
    }

    def next_word(logits: Tensor, ids: Tensor) -> Tensor:
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())

    objective = ElasticObjective(net, next_word, psd_weight=0.1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    losses = []
    for _ in range(5):
        optimizer.zero_grad(set_to_none=True)
        terms = objective(IDS, IDS, attention_mask=PADDING)
        terms.total.backward()
        optimizer.step()
        losses.append(float(terms.routine.detach()))
    assert losses[-1] < losses[0]
    with torch.no_grad():
        assert torch.equal(net.eval()(IDS), model.eval()(IDS).logits)


def test_truncated_nets_hold_no_layers_beyond_their_depth() -> None:
    net = split(made(TEXT_MODELS["bert"]), IDS).wrap()
    sizes = [sum(p.numel() for p in net.truncate(depth).parameters()) for depth in net.taps]
    layer = sum(p.numel() for p in net.blocks[0].parameters())
    assert [after - before for before, after in pairwise(sizes)] == [layer, layer]


def test_threads_that_share_a_net_do_not_mix_their_masks() -> None:
    net = split(made(TEXT_MODELS["llama"]), IDS, attention_mask=PADDING).wrap().eval()
    masks = [PADDING, torch.ones_like(PADDING), PADDING.flip(0)]
    with torch.no_grad():
        expected = [net(IDS, attention_mask=mask) for mask in masks]
    right = []

    def work(index: int) -> None:
        with torch.no_grad():
            outputs = [net(IDS, attention_mask=masks[index]) for _ in range(15)]
        right.append(all(torch.equal(output, expected[index]) for output in outputs))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert right == [True] * 3


TRACED = ("vit", "bert", "llama")


def traced_case(name: str) -> tuple[Any, Tensor, dict[str, Tensor]]:
    """A split of two layers, an input, and a mask where the model takes one."""
    if name == "vit":
        return split(made(vit, 2), PIXELS).wrap().eval(), PIXELS, {}
    net = split(made(TEXT_MODELS[name], 2), IDS, attention_mask=PADDING).wrap().eval()
    return net, IDS, {"attention_mask": PADDING}


TORCH = tuple(map(int, torch.__version__.split(".")[:2]))
TRACES_TRANSFORMERS = TORCH >= (2, 7)
NOT_TRACED = "torch 2.6 cannot trace transformers' own forwards into one graph"


@pytest.mark.skipif(not TRACES_TRANSFORMERS, reason=NOT_TRACED)
@pytest.mark.parametrize("name", TRACED)
def test_compiled_as_one_graph_it_gives_the_same_at_every_depth(name: str) -> None:
    net, x, masks = traced_case(name)
    torch.compiler.reset()  # of the limit of compilations, too
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    with torch.no_grad():
        for depth in net.taps:
            for inputs in ({}, masks):
                expected = net(x, depth=depth, **inputs)
                assert torch.equal(compiled(x, depth=depth, **inputs), expected)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", TRACED)
def test_exported_it_gives_the_same_at_every_depth(name: str, strict: bool) -> None:
    if strict and not TRACES_TRANSFORMERS:
        pytest.skip(NOT_TRACED)
    net, x, masks = traced_case(name)
    with torch.no_grad():
        for depth in net.taps:
            inputs = {"depth": depth, **masks}
            program = torch.export.export(net, (x,), inputs, strict=strict)
            assert torch.equal(program.module()(x, **inputs), net(x, **inputs))


def test_the_stem_prepares_no_more_layers_than_a_pass_runs() -> None:
    stem: Any = split(made(TEXT_MODELS["gemma"]), IDS).wrap().eval().stem
    with torch.no_grad():
        x, context = stem(IDS, attention_mask=PADDING)
        for depth in (1, 2, 3):
            x_at_depth, first = stem(IDS, attention_mask=PADDING, last_depth=depth)
            assert torch.equal(x_at_depth, x)
            assert len(first.calls) == depth
            assert same_bits(first.calls, context.calls[:depth])


class CountingLlama(hf.LlamaModel):
    """Asks for every layer by its number, as some forwards do."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        assert self.layers[self.config.num_hidden_layers - 1] is not None
        return super().forward(*args, **kwargs)


def test_a_forward_that_counts_on_all_layers_gets_them_all() -> None:
    model = made(lambda n: CountingLlama(hf.LlamaConfig(**TEXT, num_hidden_layers=n)))
    net = split(model, IDS).wrap().eval()
    stem: Any = net.stem
    assert stem.takes_last_depth is False
    with torch.no_grad():
        small = shorter(TEXT_MODELS["llama"], hf.LlamaForCausalLM(model.config), 2).model
        small.load_state_dict({key: model.state_dict()[key] for key in small.state_dict()})
        assert torch.equal(net(IDS, depth=2), small(IDS).last_hidden_state)


def test_the_net_grows_and_copies() -> None:
    model = made(TEXT_MODELS["llama"], 2)
    net = split(model, IDS).wrap().eval()

    def silence(layer: Any) -> None:
        nn.init.zeros_(layer.self_attn.o_proj.weight)
        nn.init.zeros_(layer.mlp.down_proj.weight)

    grown = net.grow([copy.deepcopy(model.model.layers[1])], IDS, silence)
    with torch.no_grad():
        assert torch.equal(grown(IDS), net(IDS))
        assert torch.equal(copy.deepcopy(net)(IDS), net(IDS))


def test_another_output_can_be_named() -> None:
    config = hf.BertConfig(**TEXT, num_hidden_layers=2)
    model = made(lambda _: hf.BertForPreTraining(config))
    net = split(model, IDS, output="seq_relationship_logits").wrap().eval()
    with torch.no_grad():
        assert torch.equal(net(IDS), model(IDS).seq_relationship_logits)
    with pytest.raises(
        ValueError, match=r"output None: the model's result has prediction_logits, seq_relationship"
    ):
        split(model, IDS)


def test_what_is_no_stack_of_layers_is_refused() -> None:
    t5 = hf.T5Config(
        vocab_size=40,
        d_model=24,
        num_layers=2,
        num_heads=2,
        d_ff=32,
        d_kv=8,
        decoder_start_token_id=0,
    )
    with pytest.raises(
        ValueError, match=r"T5ForConditionalGeneration is not split: .*no encoder and decoder"
    ):
        split(hf.T5ForConditionalGeneration(t5), IDS)
    albert = hf.AlbertConfig(**TEXT, embedding_size=16, num_hidden_layers=3)
    with pytest.raises(
        ValueError, match=r"AlbertModel is not split: .* do not run once each and in order"
    ):
        split(hf.AlbertModel(albert).eval(), IDS)
    with pytest.raises(ValueError, match="Linear is not a transformers model"):
        split(nn.Linear(2, 2), IDS)
    net = split(made(TEXT_MODELS["bert"]), IDS).wrap()
    for name in ("attention_maks", "past_key_values"):
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
            net(IDS, **{name: PADDING})


NOT_TAKEN = {
    "use_cache": "keeps no cache. elasticnet.retrofit.to_model",
    "output_hidden_states": r"net\(x, taps=net\.taps\)\.features",
    "return_dict": "the net returns one tensor",
    "attention_masks": "expected some of attention_mask, position_ids",
}


@pytest.mark.parametrize("name", NOT_TAKEN)
def test_an_input_that_the_net_does_not_take_is_refused_with_the_way(name: str) -> None:
    net: Any = split(made(TEXT_MODELS["llama"], 2), IDS).wrap()
    with pytest.raises(TypeError, match=f"{name!r}: .*{NOT_TAKEN[name]}"):
        net(IDS, **{name: True})


def test_embeddings_stand_for_the_ids() -> None:
    model = made(TEXT_MODELS["llama"], 2)
    net: Any = split(model, IDS).wrap().eval()
    embeddings = model.get_input_embeddings()(IDS)
    with torch.no_grad():
        assert torch.equal(net(None, inputs_embeds=embeddings), net(IDS))
    with pytest.raises(TypeError, match=r"inputs_embeds beside ids: .* net\(None, inputs_embeds="):
        net(IDS, inputs_embeds=embeddings)


def test_labels_and_generate_say_what_to_do() -> None:
    net = split(made(TEXT_MODELS["llama"], 2), IDS).wrap()

    with pytest.raises(TypeError, match=r"'labels': .* Give the labels to the objective"):
        net(IDS, labels=IDS)
    for name in ("generate", "save_pretrained", "push_to_hub"):
        with pytest.raises(TypeError, match=rf"no {name}: .*retrofit.to_model\(net, depth\)"):
            getattr(net.truncate(1), name)(IDS)
    resizable: Any = copy.deepcopy(net)
    with pytest.raises(TypeError, match=r"no resize_token_embeddings: .* before the split"):
        resizable.resize_token_embeddings(50)
    with pytest.raises(TypeError, match=r"no gradient_checkpointing_enable: .*checkpoint_blocks=T"):
        resizable.gradient_checkpointing_enable()


@pytest.mark.parametrize("name", ["bert", "bert, classes", "roberta"])
def test_a_config_that_asks_for_tuples_is_split(name: str) -> None:
    model = made(TEXT_MODELS[name])
    for module in model.modules():
        if hasattr(module, "config"):
            module.config.return_dict = False

    net = split(model, IDS, attention_mask=PADDING).wrap().eval()

    with torch.no_grad():
        expected = model(IDS, attention_mask=PADDING)
        assert isinstance(expected, tuple)
        assert torch.equal(net(IDS, attention_mask=PADDING), expected[0])


def halved(module: nn.Module, inputs: Any, output: Any) -> Any:
    output["last_hidden_state"] = output["last_hidden_state"] / 2
    return output


def test_a_hook_around_the_layers_is_named() -> None:
    model = TEXT_MODELS["bert"](2).eval()
    model.encoder.register_forward_hook(halved)

    with pytest.raises(ValueError, match="do not have the forward hook halved on its BertEncoder"):
        split(model, IDS)


def test_a_replaced_forward_around_the_layers_is_named() -> None:
    model = TEXT_MODELS["bert"](2).eval()
    original = model.forward

    def halved_forward(*args: Any, **kwargs: Any) -> Any:
        return halved(model, args, original(*args, **kwargs))

    model.forward = halved_forward

    with pytest.raises(ValueError, match="do not have the replaced forward of its BertModel"):
        split(model, IDS)


def test_a_hook_on_a_layer_is_kept() -> None:
    model = TEXT_MODELS["bert"](2).eval()
    model.encoder.layer[0].register_forward_hook(doubled)

    net = split(model, IDS).wrap().eval()

    assert torch.equal(net(IDS), model(IDS).last_hidden_state)


def doubled(module: nn.Module, inputs: Any, output: Any) -> Any:
    return (output[0] * 2, *output[1:]) if isinstance(output, tuple) else output * 2
