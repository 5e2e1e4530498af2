"""Models whose forward assigns to themselves, or whose hooks keep what they see, are left alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from elasticnet.retrofit import split
from tiny_nets import TinyBlock

X = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
MEAN = torch.tensor([0.4488, 0.4371, 0.4040]).view(1, 3, 1, 1)


class Restorer(nn.Module):
    """A super-resolution network as BasicSR writes it: the mean follows the input's type."""

    def __init__(self, follow: Callable[[Tensor, Tensor], Tensor], is_buffer: bool) -> None:
        super().__init__()
        self.follow = follow
        if is_buffer:
            self.register_buffer("mean", MEAN.clone())
        else:
            vars(self)["mean"] = MEAN.clone()
        self.conv_first = nn.Conv2d(3, 4, 3, padding=1)
        self.body = nn.Sequential(*(TinyBlock("residual", "b c h w", 4, 4) for _ in range(3)))
        self.conv_after_body = nn.Conv2d(4, 4, 3, padding=1)
        self.conv_last = nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        self.mean = self.follow(self.mean, x)
        x = self.conv_first((x - self.mean) * 255)
        residual = self.conv_after_body(self.body(x))
        residual += x
        return self.conv_last(residual) / 255 + self.mean


def type_as(mean: Tensor, x: Tensor) -> Tensor:
    return mean.type_as(x)


def to_tensor(mean: Tensor, x: Tensor) -> Tensor:
    return mean.to(x)


def to_device(mean: Tensor, x: Tensor) -> Tensor:
    return mean.to(x.device)


def to_device_then_dtype(mean: Tensor, x: Tensor) -> Tensor:
    return mean.to(x.device).to(x.dtype)


@pytest.mark.parametrize("is_buffer", [False, True])
@pytest.mark.parametrize("follow", [type_as, to_tensor, to_device, to_device_then_dtype])
def test_a_mean_that_follows_the_input_is_split(
    follow: Callable[[Tensor, Tensor], Tensor], is_buffer: bool
) -> None:
    model = Restorer(follow, is_buffer).eval()
    expected = model(X)

    net = split(model, "body", X).wrap().eval()

    assert torch.equal(net(X), expected)
    assert net.head_skip == "stem"


def test_the_mean_follows_the_network_to_another_type() -> None:
    net = split(Restorer(type_as, is_buffer=False), "body", X).wrap().eval()

    assert net.double()(X.double()).dtype == torch.float64
    assert [buffer.dtype for buffer in net.buffers()] == [torch.float64, torch.float64]


@pytest.mark.parametrize("is_buffer", [False, True])
def test_what_a_trace_assigns_is_put_back(is_buffer: bool) -> None:
    model = Restorer(type_as, is_buffer)
    mean = model.mean
    attributes = dict(vars(model))
    keys = list(model.state_dict())

    split(model, "body", X)

    assert model.mean is mean
    assert vars(model) == attributes
    assert list(model.state_dict()) == keys


class Body(nn.Module):
    """The container of the blocks, which keeps what it sees in every way."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(TinyBlock("residual", "b c h w", 3, 3) for _ in range(2))
        self.kept: dict[str, Any] = {"maps": [], "names": set()}

    def forward(self, x: Tensor) -> Tensor:
        self.last_input = x
        self.kept["input"] = x
        self.kept["maps"].append(x)
        self.kept["names"].add(x)
        for block in self.blocks:
            x = block(x)
        return x


class Keeping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = Body()
        self.head = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def test_what_a_container_keeps_is_put_back() -> None:
    model = Keeping()

    split(model, "body.blocks", X)

    assert model.body.kept == {"maps": [], "names": set()}
    assert not hasattr(model.body, "last_input")


class Recorder:
    """A hook that keeps the features that it saw."""

    def __init__(self) -> None:
        self.features: list[Tensor] = []

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.features.append(output)

    def record(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.features = [*self.features, output]


def test_what_hooks_keep_is_put_back() -> None:
    model = Keeping()
    by_name: dict[str, Tensor] = {}
    hook = Recorder()
    owner = Recorder()

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        by_name["body"] = output

    model.body.register_forward_hook(keep)
    model.body.register_forward_hook(hook)
    model.register_forward_hook(owner.record)

    split(model, "body.blocks", X)

    assert by_name == {}
    assert hook.features == []
    assert owner.features == []


class Remembering(Keeping):
    """Its output depends on the input before."""

    def __init__(self) -> None:
        super().__init__()
        self.before = torch.zeros(1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(self.body.blocks[1](self.body.blocks[0](x))) + self.before
        self.before = x.mean()
        return y


class Branching(Keeping):
    """Its forward cannot be traced, and fails after it has assigned."""

    def forward(self, x: Tensor) -> Tensor:
        self.peak = x.max()
        return super().forward(x / self.peak if self.peak > 1 else x)


class TwoFaced(Keeping):
    """Its forward takes other steps in training mode, and assigns only there."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.scale = x.std()
            x = x / self.scale
        return super().forward(x)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Remembering, r"do not reproduce Remembering.*assigns self\.before"),
        (Branching, r"cannot trace.*assigns self\.peak"),
        (TwoFaced, r"other steps in training mode.*assigns .*self\.scale"),
    ],
)
def test_what_cannot_be_split_names_the_assignment_and_leaves_nothing(
    kind: type[nn.Module], reason: str
) -> None:
    model = kind()
    attributes = dict(vars(model))

    with pytest.raises(ValueError, match=reason):
        split(model, "body.blocks", X)

    assert vars(model) == attributes


def doubled(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output * 2


@pytest.mark.parametrize("path", ["", "body", "body.blocks.0", "head"])
def test_a_hook_that_changes_an_output_is_kept(path: str) -> None:
    model = Keeping().eval()
    model.get_submodule(path).register_forward_hook(doubled)

    net = split(model, "body.blocks", X).wrap().eval()

    assert torch.equal(net(X), model(X))


def test_a_forward_that_was_replaced_is_kept() -> None:
    model = Keeping().eval()
    original = model.forward

    def doubled_forward(x: Tensor) -> Tensor:
        return original(x) * 2

    vars(model)["forward"] = doubled_forward

    net = split(model, "body.blocks", X).wrap().eval()

    assert torch.equal(net(X), model(X))
