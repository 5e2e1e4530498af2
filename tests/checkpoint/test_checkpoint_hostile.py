"""Damaged and forged checkpoints give one line that names the file, or the very net; no memory."""

from __future__ import annotations

import copy
import json
import random
import resource
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import elasticnet
from contract import same
from elasticnet import ElasticWrapper
from elasticnet.checkpoint import read_header
from elasticnet.checkpoint.header import KEY, encode_description
from elasticnet.checkpoint.safetensors_file import METADATA, Entry, header_bytes, read_table
from elasticnet.sr import asrn, edsr, rcan

MAX_ADDED_KIB = 200 << 10  # that all the files together may add to the process
STRANGE_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1.5,
    7,
    2**31,
    2**63,
    10**30,
    10**400,
    float("inf"),
    float("nan"),
    "",
    "x",
    "\0",
    "../../etc",
    "F32",
    "asrn",
    "\ud800",
    [],
    {},
    [[]],
    [1] * 100,
    {"a": {"a": {}}},
    [[[[[[[[[0]]]]]]]]],
)


class Saved(NamedTuple):
    path: Path
    whole: bytes
    net: ElasticWrapper
    state: dict[str, Tensor]


@pytest.fixture(scope="module", params=["asrn", "rcan"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    path = tmp_path_factory.mktemp("hostile") / "net.safetensors"
    torch.manual_seed(0)
    nets: dict[str, Callable[[], ElasticWrapper]] = {
        "asrn": lambda: asrn(2, num_blocks=2, channels=8).eval(),
        "rcan": lambda: rcan(2, num_blocks=2, channels=4, group_size=1, reduction=2).eval(),
    }
    net = nets[request.param]()
    elasticnet.save(net, path, {"psnr": [30.5, 31.5]}, {"cpu": {"ms": 1.5}})
    return Saved(path, path.read_bytes(), net, dict(net.state_dict()))


# --- ways to damage a file; each is (random, whole file) -> file


def flip_bits(rng: random.Random, whole: bytes) -> bytes:
    damaged = bytearray(whole)
    reach = rng.choice([8, header_end(whole), len(whole)])
    for _ in range(rng.choice([1, 1, 2, 20])):
        damaged[rng.randrange(reach)] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def cut(rng: random.Random, whole: bytes) -> bytes:
    return whole[
        : rng.choice(
            [rng.randrange(16), rng.randrange(header_end(whole)), rng.randrange(len(whole))]
        )
    ]


def lengthen(rng: random.Random, whole: bytes) -> bytes:
    extra = rng.randbytes(rng.choice([1, 8, 1000]))
    place = rng.choice([0, 8, header_end(whole), len(whole)])
    return whole[:place] + extra + whole[place:]


def scribble(rng: random.Random, whole: bytes) -> bytes:
    start = rng.randrange(header_end(whole))
    noise = rng.choice(
        [
            rng.randbytes(rng.randrange(1, 40)),
            b'"' * 3,
            b"{" * 500,
            b"[" * 50_000,
            b"9" * 5000,
            b"\xff",
        ]
    )
    kept = whole[start + len(noise) :] if rng.random() < 0.5 else whole[start:]
    return whole[:start] + noise + kept


def change_length(rng: random.Random, whole: bytes) -> bytes:
    length = header_end(whole) - 8
    lengths = [
        0,
        1,
        length - 1,
        length + 1,
        len(whole),
        2**31,
        10**8,
        10**8 + 1,
        2**62,
        2**64 - 1,
        rng.getrandbits(64),
    ]
    return rng.choice(lengths).to_bytes(8, "little") + whole[8:]


def change_table(rng: random.Random, whole: bytes) -> bytes:
    """One value of the safetensors header, at any depth of it, becomes something strange."""
    header = json.loads(whole[8 : header_end(whole)])
    mutate(rng, header)
    return with_header(header, whole)


def change_description(rng: random.Random, whole: bytes) -> bytes:
    """One value of the description becomes something strange; its checksum stays as it was."""
    header = json.loads(whole[8 : header_end(whole)])
    description = json.loads(header[METADATA][KEY])
    mutate(rng, description)
    header[METADATA][KEY] = json.dumps(description)
    return with_header(header, whole)


def swap_offsets(rng: random.Random, whole: bytes) -> bytes:
    header = json.loads(whole[8 : header_end(whole)])
    one, other = rng.sample([name for name in header if name != METADATA], 2)
    part = rng.choice(["data_offsets", "shape", "dtype"])
    header[one][part], header[other][part] = header[other][part], header[one][part]
    return with_header(header, whole)


DAMAGES = (
    flip_bits,
    cut,
    lengthen,
    scribble,
    change_length,
    change_table,
    change_description,
    swap_offsets,
)


def header_end(whole: bytes) -> int:
    return 8 + int.from_bytes(whole[:8], "little")


def with_header(header: dict[str, Any], whole: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + whole[header_end(whole) :]


def mutate(rng: random.Random, value: Any) -> None:
    """Replace, remove or add one member somewhere in a JSON value."""
    places: list[tuple[Any, Any]] = []

    def visit(inside: Any) -> None:
        members = inside.items() if isinstance(inside, dict) else enumerate(inside)
        for key, member in list(members):
            places.append((inside, key))
            if isinstance(member, (dict, list)):
                visit(member)

    visit(value)
    inside, key = rng.choice(places)
    action = rng.random()
    if action < 0.1:
        del inside[key]
    elif action < 0.2 and isinstance(inside, dict):
        inside[rng.choice(["extra", "blocks.9.x", "taps", "blocks.0.extra"])] = copy.deepcopy(
            rng.choice([*STRANGE_VALUES, inside[key]])
        )
    else:
        inside[key] = copy.deepcopy(rng.choice(STRANGE_VALUES))


def load_mutated(path: Path, content: bytes, depth: int | None) -> ElasticWrapper | None:
    """Load a file of this content; None where it is refused, in one line that names it."""
    path.write_bytes(content)
    try:
        return elasticnet.load(path, depth)
    except ValueError as error:
        message = str(error)
        assert message.startswith((f"{path}: ", f"depth {depth}: this net has taps")), message[:300]
        assert "\n" not in message
        assert len(message) < 2000, message[:300]
        return None


def peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_damaged_files_are_refused_or_give_the_very_net(saved: Saved) -> None:
    """264 files of each of two architectures."""
    outcomes: Counter[tuple[str, bool]] = Counter()
    before = peak_memory()
    for seed in range(264):
        rng = random.Random(seed)
        damage = DAMAGES[seed % len(DAMAGES)]
        content = damage(rng, saved.whole)
        loaded = load_mutated(saved.path, content, rng.choice([None, 1]))
        outcomes[damage.__name__, loaded is None] += 1
        if loaded is not None:
            assert loaded.taps == saved.net.taps[: len(loaded.taps)]
            same(
                loaded.state_dict(),
                {name: saved.state[name] for name in loaded.state_dict()},
                f"seed {seed}",
            )
    assert peak_memory() - before < MAX_ADDED_KIB
    refused = {name: outcomes[name, True] for name in (damage.__name__ for damage in DAMAGES)}
    assert min(refused.values()) >= 12, refused
    assert sum(refused.values()) >= 200, refused


def test_forged_descriptions_with_a_right_checksum_are_refused_or_give_a_net_of_the_files_size(
    saved: Saved,
) -> None:
    """Values that a program wrote on purpose: whatever is built, it is no larger than the file."""
    before = peak_memory()
    saved.path.write_bytes(saved.whole)
    table = read_table(saved.path)
    data, original = saved.whole[table.data_start :], read_header(saved.path)
    loads = 0
    for seed in range(150):
        rng = random.Random(seed)
        header = copy.deepcopy(original)
        for _ in range(rng.choice([1, 1, 2])):
            mutate(rng, rng.choice([header, header["arguments"], header["taps"]]) or header)
        try:
            text = encode_description(header, table.entries)
        except ValueError:
            continue
        loaded = load_mutated(saved.path, header_bytes(table.entries, {KEY: text}) + data, None)
        if loaded is not None:
            loads += 1
            assert sum(value.nbytes for value in loaded.state_dict().values()) <= len(data)
    assert loads >= 3
    assert peak_memory() - before < MAX_ADDED_KIB


# --- sizes that are claimed


def forged(path: Path, net: ElasticWrapper, **changes: Any) -> None:
    """Save a net, and say in its description that it is another."""
    elasticnet.save(net, path)
    table, header = read_table(path), read_header(path)
    data = path.read_bytes()[table.data_start :]
    header["taps"] = changes.pop("taps", header["taps"])
    header["arguments"] |= changes
    path.write_bytes(
        header_bytes(table.entries, {KEY: encode_description(header, table.entries)}) + data
    )


@pytest.mark.parametrize(
    ("build", "changes", "message"),
    [
        (
            asrn,
            {"taps": [10**9]},
            r"asrn cannot be built as .*: 1000000000 blocks cannot lie in \d+ tensors",
        ),
        (
            asrn,
            {"taps": [*range(1, 2000)]},
            r"asrn cannot be built as .*: 1999 blocks cannot lie in \d+ tensors",
        ),
        (asrn, {"channels": 4 * 10**8}, r"tensor '.*' has shape .*, this net needs \("),
        (asrn, {"channels": 4 * 10**30}, "asrn cannot be built as the file describes it: "),
        (asrn, {"channels": "8"}, "asrn cannot be built as .*: not all arguments converted"),
        (
            asrn,
            {"channels": 0},
            "asrn cannot be built as .*: channels 0: expected a multiple of 4, at least 8",
        ),
        (asrn, {"scale": [2]}, "asrn cannot be built as .*: argument scale is a list"),
        (asrn, {"self": 1}, "asrn cannot be built as .* argument 'self'"),
        (asrn, {"taps_": 1}, "asrn cannot be built as .* argument 'taps_'"),
        (edsr, {"channels": 10**7}, r"tensor '.*' has shape .*, this net needs \("),
        (edsr, {"channels": -3}, "edsr cannot be built as the file describes it: "),
        (
            rcan,
            {"group_size": 10**9},
            r"rcan cannot be built as .*: 1000000000 blocks cannot lie in \d+ tensors",
        ),
        (
            rcan,
            {"group_size": 0, "taps": [10**9]},
            r"rcan cannot be built as .*: 1000000000 blocks cannot lie in \d+ tensors",
        ),
        (
            rcan,
            {"group_size": -1, "taps": [10**9]},
            r"rcan cannot be built as .*: 1000000000 blocks cannot lie in \d+ tensors",
        ),
        (
            rcan,
            {"group_size": 20},
            "no tensor 'blocks.0.body.1.body.0.bias', which depth 1 of this net needs",
        ),
        (rcan, {"reduction": 0}, "rcan cannot be built as .*: reduction 0: expected 1 to 8"),
    ],
)
def test_what_a_file_claims_is_compared_with_what_it_holds(
    build: Callable[..., ElasticWrapper], changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    small: dict[str, Any] = {"group_size": 1, "reduction": 2} if build is rcan else {}
    path = tmp_path / "net.safetensors"
    forged(path, build(2, num_blocks=1, channels=8, **small), **changes)
    before = peak_memory()
    with pytest.raises(ValueError, match=f"net.safetensors: {message}"):
        elasticnet.load(path)
    assert peak_memory() - before < MAX_ADDED_KIB


def test_many_small_tensors_do_not_make_many_modules(tmp_path: Path) -> None:
    """Depth times group size counts, not each of them."""
    path = tmp_path / "net.safetensors"
    names = [f"blocks.{index}.x" for index in range(3000)] + [
        f"blocks.0.body.{index}.x" for index in range(3000)
    ]
    entries = {name: Entry("U8", (1,), index, index + 1) for index, name in enumerate(names)}
    arguments = {"scale": 2, "channels": 8, "group_size": 3000, "reduction": 2}
    header = {
        "format": 1,
        "architecture": "rcan",
        "arguments": arguments,
        "taps": [3000],
        "sha256": {},
        "notes": {},
    }
    text = encode_description({**header, "cards": {}}, entries)
    path.write_bytes(header_bytes(entries, {KEY: text}) + bytes(6000))
    with pytest.raises(
        ValueError, match=r"rcan cannot be built as .*: 9000000 blocks cannot lie in 6000 tensors"
    ):
        elasticnet.load(path)


@pytest.mark.parametrize(
    "architecture",
    ["os.system", "models", "antigravity", "elasticnet.sr.models.asrn", "__init__", "ASRN", ""],
)
def test_nothing_that_a_file_names_is_imported_or_run(tmp_path: Path, architecture: str) -> None:
    path = tmp_path / "net.safetensors"
    elasticnet.save(asrn(2, num_blocks=1, channels=8), path)
    table, header = read_table(path), read_header(path)
    data = path.read_bytes()[table.data_start :]
    header["architecture"] = architecture
    path.write_bytes(
        header_bytes(table.entries, {KEY: encode_description(header, table.entries)}) + data
    )
    imported_before = set(sys.modules)
    with pytest.raises(
        ValueError,
        match=rf"architecture '{architecture}' is not registered \(known: asrn, edsr, rcan\)",
    ):
        elasticnet.load(path)
    assert set(sys.modules) == imported_before
