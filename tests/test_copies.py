"""Copies of modules that hold what autograd computed: old norms, masks, caches, hooks."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from elasticnet._modules.copies import detached_copy


def conv() -> nn.Conv2d:
    return nn.Conv2d(4, 4, 3, padding=1)


def weight_normed() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the old weight_norm is deprecated
        return nn.utils.weight_norm(conv())


def spectral_normed() -> nn.Module:
    return nn.utils.spectral_norm(conv())


def pruned() -> nn.Module:
    return prune.random_unstructured(conv(), "weight", amount=0.5)


class Caching(nn.Module):
    """Keeps what it computed last in every way in which a module can."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()
        self.kept: dict[str, list[tuple[Tensor, ...]]] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.last_map = self.conv(x).sigmoid()
        self.kept["maps"] = [(self.last_map, self.last_map + 1)]
        return x * self.last_map


class Recorder:
    """A hook that holds the features that it saw, in a slot: it has no `__dict__`."""

    __slots__ = ("features",)

    def __init__(self) -> None:
        self.features: list[Tensor] = []

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.features.append(output)

    def record(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.features.append(output)


def hooked_by_object() -> nn.Module:
    module = conv()
    module.register_forward_hook(Recorder())
    return module


def hooked_by_method() -> nn.Module:
    module = conv()
    module.register_forward_hook(Recorder().record)
    return module


KINDS: list[Callable[[], nn.Module]] = [
    weight_normed,
    spectral_normed,
    pruned,
    Caching,
    hooked_by_object,
    hooked_by_method,
]


@pytest.fixture
def x() -> Tensor:
    return torch.rand(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", KINDS)
def test_a_module_is_copied_after_a_backward_pass(kind: Callable[[], nn.Module], x: Tensor) -> None:
    module = nn.Sequential(kind(), nn.ReLU(), kind())
    module(x).mean().backward()
    with pytest.raises(RuntimeError, match="Only Tensors created explicitly"):
        copy.deepcopy(module)

    copied = detached_copy(module)

    assert torch.equal(copied.eval()(x), module.eval()(x))


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_is_trained_alone(kind: Callable[[], nn.Module], x: Tensor) -> None:
    module = kind()
    module(x).mean().backward()
    before = {name: value.clone() for name, value in module.state_dict().items()}

    copied = detached_copy(module).eval()  # eval, because spectral_norm's buffers change otherwise
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.add_(1)
    copied(x).mean().backward()

    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is not None for parameter in copied.parameters())


def test_what_was_computed_is_kept_but_detached(x: Tensor) -> None:
    module = Caching()
    module(x)

    copied = detached_copy(module)

    assert torch.equal(copied.last_map, module.last_map)
    assert not copied.last_map.requires_grad
    ((first, second),) = copied.kept["maps"]
    assert first is copied.last_map
    assert torch.equal(second, module.last_map + 1)
    assert module.last_map.grad_fn is not None


def test_a_hook_object_of_the_copy_keeps_its_own_features(x: Tensor) -> None:
    recorder = Recorder()
    module = conv()
    module.register_forward_hook(recorder)
    module(x)

    detached_copy(module)(x)

    assert len(recorder.features) == 1


def test_a_gradient_with_a_graph_is_left_out() -> None:
    module = conv()
    scale = torch.ones(1, requires_grad=True)
    scale.grad = scale * 2  # as backward(create_graph=True) leaves it
    module.scale = scale

    copied = detached_copy(module)

    assert copied.scale.requires_grad
    assert copied.scale.grad is None


def test_shared_modules_and_tied_weights_stay_shared(x: Tensor) -> None:
    module = weight_normed()
    pair = nn.ModuleList([module, module])
    module(x).mean().backward()

    copied = detached_copy(pair)

    assert copied[0] is copied[1]
    assert copied[0] is not module


def test_objects_of_the_memo_take_the_place_of_others(x: Tensor) -> None:
    shared = conv()
    module = nn.Sequential(shared, Caching())
    module(x).mean().backward()

    copied = detached_copy(module, memo={id(shared): shared})

    assert copied[0] is shared
    assert copied[1] is not module[1]


def test_a_module_that_saw_inference_mode_is_copied(x: Tensor) -> None:
    module = Caching()
    with torch.inference_mode():
        module(x)

    copied = detached_copy(module)

    assert torch.equal(copied.last_map, module.last_map)


def test_an_attribute_that_cannot_be_copied_is_named() -> None:
    module = nn.Sequential(nn.ReLU(), Caching())
    vars(module[1])["guard"] = threading.Lock()

    with pytest.raises(TypeError, match=r"1\.guard cannot be copied .*lock"):
        detached_copy(module)


def test_a_value_that_cannot_be_copied_keeps_its_error() -> None:
    with pytest.raises(TypeError, match="lock"):
        detached_copy([threading.Lock()])


def test_lazy_layers_that_have_not_run_are_copied() -> None:
    lazy = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d())
    copied = detached_copy(lazy)
    x = torch.rand(2, 3, 5, 5)
    copied(x)
    lazy(x)
    copied.load_state_dict(lazy.state_dict())
    assert torch.equal(copied.eval()(x), lazy.eval()(x))
