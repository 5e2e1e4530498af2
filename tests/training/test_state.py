"""Exact states as bytes: any tree, optimisers, random generators; any damage is detected."""

from __future__ import annotations

import math
import random
from collections import Counter, OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from torch import nn

from elasticnet.training.state import pack_state, random_state, set_random_state, unpack_state

# --- exact state


def same(left: Any, right: Any) -> bool:
    """Equality of types and bits, written out without the library's code."""
    if isinstance(left, torch.Tensor):
        return (
            isinstance(right, torch.Tensor)
            and (left.dtype, left.shape, left.stride())
            == (right.dtype, right.shape, right.stride())
            and left.contiguous()
            .reshape(-1)
            .view(torch.uint8)
            .equal(right.contiguous().reshape(-1).view(torch.uint8))
        )
    if isinstance(left, np.ndarray | np.generic):
        return (
            type(left) is type(right)
            and left.dtype == right.dtype
            and left.shape == right.shape
            and (left.tobytes() == right.tobytes())
        )
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return list(left) == list(right) and all(
            type(a) is type(b) and same(left[a], right[b]) for a, b in zip(left, right, strict=True)
        )
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    if isinstance(left, float):
        return left.hex() == right.hex()
    return left == right


def through(state: Any) -> Any:
    step, found = unpack_state(pack_state(5, state))
    assert step == 5
    return found


FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
DTYPES = [*FLOATS, torch.int64, torch.int8, torch.uint16, torch.bool]


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    shape = draw(st.lists(st.integers(0, 3), max_size=4))
    dtype = draw(st.sampled_from(DTYPES))
    count = math.prod(shape) * dtype.itemsize
    data = draw(st.binary(min_size=count, max_size=count))
    if dtype == torch.bool:
        data = bytes(byte & 1 for byte in data)
    tensor = torch.tensor(list(data), dtype=torch.uint8).view(dtype).reshape(shape)
    return tensor.permute(draw(st.permutations(range(len(shape))))) if data else tensor


array_shapes = st_numpy.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    tensors(),
    st.text(),
    # how Python spells bytes in a file name
    st.text(st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF)),
    st_numpy.arrays(st_numpy.scalar_dtypes(), array_shapes),
    st_numpy.scalar_dtypes().flatmap(st_numpy.from_dtype),
)
keys = st.one_of(
    st.integers(), st.text(max_size=4), st.sampled_from(["a", "a.b", "b", "dict", "tensor", "']['"])
)
states = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(keys, inner, max_size=4),
    ),
    max_leaves=12,
)


@given(states)
@settings(max_examples=150)
def test_any_state_comes_back_to_the_bit(state: Any) -> None:
    assert same(through(state), state)


def test_equal_states_give_equal_bytes() -> None:
    state = {"b": torch.ones(3), "a": [torch.zeros(2), 1.5], 3: np.arange(4)}
    assert len({pack_state(1, state) for _ in range(8)}) == 1


def test_the_file_is_an_ordinary_safetensors_file(tmp_path: Path) -> None:
    net = nn.Linear(2, 3)
    (tmp_path / "state.safetensors").write_bytes(pack_state(1, {"net": net.state_dict()}))
    found = safetensors.torch.load_file(tmp_path / "state.safetensors")
    assert found["state['net']['weight']"].equal(net.weight)


def test_views_shared_and_expanded_tensors_parameters_and_plain_types() -> None:
    base = torch.arange(12.0).reshape(3, 4)
    state = [
        base,
        base[1:],
        base.T,
        base[:, 1],
        base[:, ::2],
        torch.ones(1, 1).expand(4, 5),
        nn.Parameter(base),
    ]
    for found, given_tensor in zip(through(state), state, strict=True):
        assert found.equal(given_tensor)
        assert not found.requires_grad
    assert through({"a": torch.Size([1, 2]), "b": OrderedDict(x=1)}) == {"a": (1, 2), "b": {"x": 1}}
    counted = through(Counter({5: 2, 9: 1}))
    assert type(counted) is Counter
    assert sorted(counted.elements()) == [5, 5, 9]
    conjugate = torch.tensor([1 + 2j]).conj()
    assert through(conjugate).equal(conjugate.resolve_conj())
    deep = through(base)
    deep += 1  # what comes back can be written to


def test_channels_last_layout_is_kept() -> None:
    for shape in ((2, 3, 4, 5), (8, 8, 1, 1), (1, 3, 5, 5)):
        weight = torch.randn(shape).to(memory_format=torch.channels_last)
        found = through(weight)
        assert found.equal(weight)
        assert found.stride() == weight.stride()


@pytest.mark.parametrize(
    ("bad", "place", "what"),
    [
        ({"a": [1, {2, 3}]}, r"state\['a'\]\[1\]", "set"),
        ({"a": b"bytes"}, r"state\['a'\]", "bytes"),
        ({("x", 1): 2}, "state", r"dict .*\('x', 1\)"),
        ([lambda: None], r"state\[0\]", "function"),
        ([np.array([None])], r"state\[0\]", "ndarray"),
        ([torch.zeros(3).to_sparse()], r"state\[0\]", "Tensor .*indices"),
        ([torch.zeros(3, device="meta")], r"state\[0\]", "meta"),
        (1j, "state", "complex"),
    ],
)
def test_what_cannot_be_saved_is_named(bad: Any, place: str, what: str) -> None:
    with pytest.raises(TypeError, match=f"(?s)^{place}: cannot save the .*{what}"):
        pack_state(1, bad)


def test_a_tensor_type_that_safetensors_lacks_is_named() -> None:
    with pytest.raises(TypeError, match=r"torch\.complex128: safetensors cannot hold"):
        pack_state(1, torch.zeros(2, dtype=torch.complex128))


def one_step(net: nn.Module, optimizer: torch.optim.Optimizer, scaler: Any, scheduler: Any) -> None:
    optimizer.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = net(torch.ones(2, 3, 5, 5).to(memory_format=torch.channels_last)).square().mean()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    scheduler.step(*([float(loss.detach())] if isinstance(scheduler, lr.ReduceLROnPlateau) else []))


lr = torch.optim.lr_scheduler
OPTIMIZERS = {
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01, betas=(0.9, 0.99)),
    "fused": lambda parameters: torch.optim.Adam(parameters, lr=0.01, fused=True),
    "amsgrad": lambda parameters: torch.optim.AdamW(
        parameters, lr=torch.tensor(0.01), amsgrad=True, foreach=False
    ),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
}
SCHEDULERS = {
    "step": lambda optimizer: lr.StepLR(optimizer, 2),
    "milestones": lambda optimizer: lr.MultiStepLR(optimizer, [2, 2, 5]),
    "onecycle": lambda optimizer: lr.OneCycleLR(
        optimizer, 0.1, total_steps=30, cycle_momentum=False
    ),
    "plateau": lambda optimizer: lr.ReduceLROnPlateau(optimizer, patience=1),
    "warm": lambda optimizer: lr.SequentialLR(
        optimizer, [lr.LinearLR(optimizer), lr.CosineAnnealingLR(optimizer, 9)], [3]
    ),
    "lambda": lambda optimizer: lr.LambdaLR(optimizer, lambda step: 0.5**step),
}


@pytest.mark.parametrize(
    ("optimizer_name", "scheduler_name"),
    [(name, "onecycle") for name in OPTIMIZERS if name != "sgd"]
    + [("sgd", name) for name in SCHEDULERS],
)
def test_optimiser_scheduler_and_scaler_go_on_exactly(
    optimizer_name: str, scheduler_name: str
) -> None:
    def parts() -> tuple[nn.Module, torch.optim.Optimizer, Any, Any]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)).to(
            memory_format=torch.channels_last
        )
        optimizer = OPTIMIZERS[optimizer_name](net.parameters())
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=3)
        return net, optimizer, scaler, SCHEDULERS[scheduler_name](optimizer)

    whole = parts()
    for _ in range(4):
        one_step(*whole)
    states = [part.state_dict() for part in whole]
    assert all(
        same(found, dict(state)) for found, state in zip(through(states), states, strict=True)
    )
    resumed = parts()
    for part, state in zip(resumed, through(states), strict=True):
        part.load_state_dict(state)
    for _ in range(4):
        one_step(*whole)
        one_step(*resumed)
    assert pack_state(0, [part.state_dict() for part in whole]) == pack_state(
        0, [part.state_dict() for part in resumed]
    )


# --- damage and other formats

DAMAGED = "its checksum does not match its content|it is not a whole state file"
FORMAT_1 = (Path(__file__).parent / "old_run/checkpoints/step_00000003.safetensors").read_bytes()


def damaged(data: bytes, draw: st.DataObject) -> Iterator[bytes]:
    """Yield the bytes with one changed, with one missing, cut short, and with one too many."""
    place = draw.draw(st.integers(0, len(data) - 1))
    changed = bytearray(data)
    changed[place] ^= draw.draw(st.integers(1, 255))
    yield bytes(changed)
    yield data[:place] + data[place + 1 :]
    yield data[:place]
    yield data + b"\0"


@given(st.data())
@settings(max_examples=150)
def test_any_changed_or_missing_byte_is_detected(draw: st.DataObject) -> None:
    state = {"net": {"weight": torch.arange(9.0)}, '{"sha256":"' + "0" * 64: [1, (2.5, math.inf)]}
    for bad in damaged(pack_state(12, state), draw):
        with pytest.raises(ValueError, match=DAMAGED):
            unpack_state(bad)


@given(st.data())
def test_any_changed_or_missing_byte_of_format_1_is_detected(draw: st.DataObject) -> None:
    for bad in damaged(FORMAT_1, draw):
        with pytest.raises(ValueError, match=DAMAGED):
            unpack_state(bad)


@pytest.mark.parametrize(
    "state",
    [{"a": torch.ones(3), "b": np.float32(2.5), "é": [None, "ü"]}, [], {"a": torch.ones(2, 0)}],
)
def test_every_single_bit_is_covered(state: Any) -> None:
    packed = pack_state(1, state)
    for place in range(len(packed)):
        for bit in range(8):
            changed = bytearray(packed)
            changed[place] ^= 1 << bit
            with pytest.raises(ValueError, match=DAMAGED):
                unpack_state(bytes(changed))


def test_another_blank_in_the_header_s_filling_is_detected() -> None:
    """JSON allows a tab where safetensors fills the header up with spaces."""
    num_filled = 0
    for step in (1, 10, 100, 1000):
        packed = pack_state(step, [])
        end = 8 + int.from_bytes(packed[:8], "little")
        if packed[end - 1 : end] == b" ":
            num_filled += 1
            with pytest.raises(ValueError, match="its header does not end with } and spaces"):
                unpack_state(packed[: end - 1] + b"\t" + packed[end:])
    assert num_filled > 0


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "it has no entry '__metadata__'"),
        ({"other": "text"}, "it has no entry 'run'"),
        ({"run": ""}, "its checksum does not match its content"),
        ({"run": "{}"}, "it has no entry 'sha256'"),
        ({"run": '{"sha256":""}'}, "it has no entry 'step'"),
        ({"run": "{"}, "it is not a whole state file: Expecting property name"),
    ],
)
def test_other_safetensors_files_are_refused(metadata: dict[str, str] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unpack_state(safetensors.torch.save({"a": torch.ones(3)}, metadata))


@pytest.mark.parametrize("data", [b"", b"\0" * 8, b"some text", b"PK\3\4" + bytes(100)])
def test_files_of_other_kinds_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="it is not a whole state file"):
        unpack_state(data)


def test_a_later_format_is_an_error_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("elasticnet.training.state.FORMAT", 7)
    later = pack_state(1, [])
    monkeypatch.undo()
    message = "a state of format 7: this version .* reads formats up to 2; update elasticnet"
    with pytest.raises(RuntimeError, match=message):
        unpack_state(later)


# --- random generators


def draws(generator: torch.Generator) -> list[float]:
    numbers = [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn()]  # noqa: NPY002
    numbers += [
        torch.rand(()).item(),
        torch.randn(3)[0].item(),
        torch.rand((), generator=generator).item(),
    ]
    if torch.cuda.is_available():
        numbers += [
            torch.rand((), device=f"cuda:{index}").item()
            for index in range(torch.cuda.device_count())
        ]
    return numbers


def test_every_generator_goes_on_where_it_was() -> None:
    generator = torch.Generator().manual_seed(3)
    draws(generator)  # leaves a Gaussian number in reserve in Python's and NumPy's generator
    state = random_state({"sampler": generator})
    expected = draws(generator)
    assert draws(generator) != expected
    other = torch.Generator()
    set_random_state(through(state), {"sampler": other})
    assert draws(other) == expected


def test_generators_of_other_names_are_refused() -> None:
    state = random_state({"sampler": torch.Generator()})
    with pytest.raises(
        ValueError, match=r"random generators \['loader'\]: the state holds \['sampler'\]"
    ):
        set_random_state(state, {"loader": torch.Generator()})


def test_another_number_of_gpus_is_noted(caplog: pytest.LogCaptureFixture) -> None:
    state = random_state()
    set_random_state(state)
    assert not caplog.messages
    count = len(state["cuda"])
    state["cuda"] = [*state["cuda"], torch.get_rng_state()]
    set_random_state(state)
    (message,) = caplog.messages
    assert f"was saved with {count + 1} GPUs and goes on with {count}: random numbers" in message
