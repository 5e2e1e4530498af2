"""A depth costs its own bytes, wherever the file lies, and gives the truncated net."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from torch import nn

import elasticnet
from contract import disturb, same
from elasticnet import ElasticWrapper
from elasticnet.card import measure
from elasticnet.card.report import caption
from elasticnet.checkpoint import load_into, read_header, read_sizes
from elasticnet.checkpoint.safetensors_file import read_table
from elasticnet.cli import main
from elasticnet.sr import asrn, edsr, rcan
from loopback import Loopback, serving
from tiny_nets import Case, tiny_cases

BUILDERS: dict[str, Callable[[], ElasticWrapper]] = {
    "asrn": lambda: asrn(2, num_blocks=12, channels=8),
    "edsr": lambda: edsr(3, num_blocks=3, channels=4),
    "rcan": lambda: rcan(4, num_blocks=3, channels=8, group_size=2, reduction=4),
}


class Counted(io.BytesIO):
    """A file that remembers which bytes were read."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.seen: list[int] = []

    def read(self, size: int | None = -1, /) -> bytes:
        start = self.tell()
        part = super().read(size)
        self.seen += range(start, start + len(part))
        return part


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, ElasticWrapper]]:
    saved = {}
    for name, build in BUILDERS.items():
        torch.manual_seed(0)
        path, net = tmp_path_factory.mktemp("sources") / f"{name}.safetensors", build().eval()
        disturb(net)
        elasticnet.save(net, path, {"name": name}, {"a machine": {"ms": [1.5, 2.5]}})
        saved[name] = path, net
    return saved


@pytest.fixture(scope="module")
def server(files: dict[str, tuple[Path, ElasticWrapper]]) -> Iterator[Loopback]:
    with serving() as state:
        state.files |= {path.name: path.read_bytes() for path, _ in files.values()}
        yield state


def bytes_of(path: Path, net: ElasticWrapper) -> list[int]:
    """Return how many bytes a load should read: length, header and the net's tensors."""
    table = read_table(path)
    places = [*range(table.data_start)]
    for name in net.state_dict():
        entry = table.entries[name]
        places += range(table.data_start + entry.start, table.data_start + entry.end)
    return sorted(places)


@pytest.mark.parametrize("name", BUILDERS)
def test_a_depth_reads_its_own_bytes_once_and_no_others(name: str, files: dict) -> None:
    path, net = files[name]
    for depth in {1, 2, net.taps[-2], net.taps[-1]}:
        file = Counted(path.read_bytes())
        loaded = elasticnet.load(file, depth)
        same(
            loaded.state_dict(), dict(net.truncate(depth).state_dict()), f"{name} at depth {depth}"
        )
        assert sorted(file.seen) == bytes_of(path, net.truncate(depth))
        file.seen.clear()
        load_into(net.truncate(depth), file)
        assert sorted(file.seen) == bytes_of(path, net.truncate(depth))
    file = Counted(path.read_bytes())
    assert read_header(file)["notes"] == {"name": name}
    assert len(file.seen) == read_table(path).data_start


@given(tiny_cases())
def test_nets_of_any_kind_read_their_own_bytes(
    tmp_path_factory: pytest.TempPathFactory, case: Case
) -> None:
    """Adapters, stems and taps of every kind; also what read_sizes says."""
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    elasticnet.save(case.net, path)
    sizes = read_sizes(path)
    assert tuple(sizes) == case.net.taps
    for depth in case.net.taps:
        file = Counted(path.read_bytes())
        small = elasticnet.load(file, depth, build=lambda: case.net)
        assert sorted(file.seen) == bytes_of(path, case.net.truncate(depth))
        values = list(small.state_dict().values())
        assert sizes[depth] == (
            sum(value.numel() for value in values),
            sum(value.numel() * value.element_size() for value in values),
        )


@pytest.mark.parametrize("name", BUILDERS)
def test_a_url_serves_a_depth_in_three_requests(name: str, files: dict, server: Loopback) -> None:
    """The header's length, the header, and one piece: what a depth needs lies together."""
    path, net = files[name]
    for depth in (1, net.taps[-1]):
        server.log.clear()
        loaded = elasticnet.load(f"{server.url}/files/{path.name}", depth)
        same(
            loaded.state_dict(), dict(net.truncate(depth).state_dict()), f"{name} at depth {depth}"
        )
        asked = [place for start, end in server.ranges() for place in range(start, end)]
        assert sorted(asked) == bytes_of(path, net.truncate(depth))
        assert len(server.log) == 3


def test_a_url_that_redirects_and_one_without_ranges(files: dict, server: Loopback) -> None:
    path, net = files["asrn"]
    same(
        elasticnet.load(f"{server.url}/moved/{path.name}").state_dict(),
        dict(net.state_dict()),
        "state",
    )
    with pytest.raises(
        ValueError, match=r"/plain/asrn\.safetensors: .*cannot be read in parts: download the file"
    ):
        elasticnet.load(f"{server.url}/plain/{path.name}")
    with pytest.raises(OSError, match=r"/files/none\.safetensors: the server answers 404"):
        elasticnet.load(f"{server.url}/files/none.safetensors")


def test_an_open_file_stays_open_and_is_read_from_anywhere(files: dict) -> None:
    path, net = files["edsr"]
    with open(path, "rb") as file:
        file.seek(100)
        for depth in (2, 1):
            same(
                elasticnet.load(file, depth).state_dict(),
                dict(net.truncate(depth).state_dict()),
                "state",
            )
        assert not file.closed


@pytest.mark.parametrize("name", BUILDERS)
def test_loading_by_name_draws_no_random_numbers_and_leaves_nothing_unset(
    name: str, files: dict
) -> None:
    path, net = files[name]
    before = torch.get_rng_state()
    loaded = elasticnet.load(path)
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(value.is_meta for value in [*loaded.parameters(), *loaded.buffers()])
    assert {n: p.requires_grad for n, p in loaded.named_parameters()} == {
        n: p.requires_grad for n, p in net.named_parameters()
    }
    x = torch.rand(1, 3, 9, 8)
    with torch.no_grad():
        same(loaded(x), net(x), "prediction")


# --- load_into


def test_weights_go_into_a_net_that_exists(files: dict) -> None:
    path, net = files["asrn"]
    mine = BUILDERS["asrn"]().train()
    parameters = dict(mine.named_parameters())
    load_into(mine, path)
    same(mine.state_dict(), dict(net.state_dict()), "state")
    assert mine.training
    assert all(parameters[name] is parameter for name, parameter in mine.named_parameters())
    half = BUILDERS["asrn"]().truncate(2).to(torch.bfloat16).to(memory_format=torch.channels_last)
    load_into(half, path)
    expected = {
        name: value.to(torch.bfloat16) for name, value in net.truncate(2).state_dict().items()
    }
    same(half.state_dict(), expected, "in the net's own dtype")
    assert half.get_parameter("stem.1.weight").is_contiguous(memory_format=torch.channels_last)


@pytest.mark.filterwarnings("ignore:Complex modules")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: asrn(2, num_blocks=13, channels=8),
            r"this net has a tap at depth 13, and the file at depths 1, 2, .*12",
        ),
        (
            lambda: asrn(3, num_blocks=2, channels=8),
            r"tensor 'head.deconvs.0.weight' has shape \(64, 64, 2, 2\), this",
        ),
        (
            lambda: edsr(2, num_blocks=2, channels=8),
            "no tensor 'blocks.0.body.0.bias', which depth 2 of this net needs",
        ),
        (
            lambda: asrn(2, num_blocks=2, channels=8).to(torch.complex64),
            r"is of torch.float32, this net needs torch.comp",
        ),
    ],
)
def test_a_net_that_does_not_fit_is_left_as_it_was(
    make: Callable[[], ElasticWrapper], message: str, files: dict
) -> None:
    path, net = files["asrn"][0], make()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(ValueError, match=rf"asrn\.safetensors: .*{message}"):
        load_into(net, path)
    same(net.state_dict(), before, "state")


def test_damage_behind_good_tensors_leaves_the_net_as_it_was(files: dict) -> None:
    path = files["asrn"][0]
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    mine = BUILDERS["asrn"]()
    before = {name: value.clone() for name, value in mine.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"<BytesIO>: tensor 'blocks\.11\..*' does not have the SHA-256"
    ):
        load_into(mine, io.BytesIO(damaged))
    same(mine.state_dict(), before, "state")
    load_into(mine.truncate(11), io.BytesIO(damaged))


def test_a_net_without_memory_is_refused(files: dict) -> None:
    with torch.device("meta"):
        net = ElasticWrapper([nn.Linear(2, 2)], nn.Linear(2, 2))
    with pytest.raises(
        ValueError,
        match=r"'blocks\.0\.weight' of this net is on the meta device: call net\.to_empty",
    ):
        load_into(net, files["asrn"][0])


# --- elasticnet info


def cells(line: str) -> list[str]:
    """The cells of a row of a table."""
    return [cell.strip() for cell in line.split("|")[1:-1]]


def small_asrn_of_two() -> ElasticWrapper:
    return asrn(2, num_blocks=2, channels=8)


def test_info_shows_notes_sizes_and_cards_of_files_and_urls(
    files: dict, server: Loopback, capsys
) -> None:
    path, net = files["edsr"]
    assert main(["info", str(path)]) == 0
    local = capsys.readouterr().out
    server.log.clear()
    assert main(["info", f"{server.url}/files/{path.name}"]) == 0
    assert capsys.readouterr().out == local
    assert server.ranges()[-1][1] == read_table(path).data_start, "nothing behind the header"
    assert len(server.log) == 4
    lines = local.splitlines()
    assert lines[0] == "edsr(channels=4, fold=True, num_blocks=3, res_scale=1.0, scale=3)"
    count = sum(parameter.numel() for parameter in net.truncate(1).parameters())
    assert cells(lines[2]) == ["depth", "parameters", "bytes"]
    assert cells(lines[4]) == ["1", f"{count:,}", f"{count * 4:,}"]
    assert lines[8:11] == ["name  edsr", "", "card of a machine:"]


def test_info_of_a_custom_net_and_of_text_that_would_steer_a_terminal(
    tmp_path: Path, capsys
) -> None:
    path = tmp_path / "own.safetensors"
    net = ElasticWrapper([nn.Linear(2, 2)], nn.BatchNorm1d(2), layout="b c")
    card = measure(net, torch.rand(4, 2), repeats=3, memory=False)
    elasticnet.save(net, path, {"note": "\x1b[2Jred"}, {"mine": card.to_json(), "other": {"ms": 1}})
    assert main(["info", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "network of no registered architecture: elasticnet.load needs build="
    assert cells(lines[2]) == ["depth", "values", "bytes"]
    assert cells(lines[4]) == ["1", "15", "64"]
    assert lines[6] == "note  \N{REPLACEMENT CHARACTER}[2Jred"
    assert lines[8] == "card of mine:"
    assert lines[9] == f"  {caption(card)}"
    assert lines[10].startswith("  | depth | parameters |")
    assert cells(lines[12])[:2] == ["1", "10"]
    assert lines[-3] == "card of other:"
    assert lines[-2].startswith("  not readable by this version (depth card: ")
    assert lines[-1] == "  ms  1"


def test_info_shows_notes_of_each_depth_in_the_table_and_others_by_name(
    tmp_path: Path, capsys
) -> None:
    path = tmp_path / "net.safetensors"
    notes = {
        "psnr": {1: 30.123456789, 2: 31.0},
        "options": {"steps": 2, "loss": "l1", "taps": [1, 2], "adam": {"beta": 0.9}},
        "of one depth": {2: 31.0},
        "nothing": {},
    }
    elasticnet.save(small_asrn_of_two(), path, notes)
    assert main(["info", str(path)]) == 0
    said = capsys.readouterr().out
    assert "{'" not in said
    lines = said.splitlines()
    assert cells(lines[2]) == ["depth", "parameters", "bytes", "psnr"]
    assert cells(lines[4])[-1] == "30.12"
    assert cells(lines[5])[-1] == "31"
    assert lines[7:] == [
        "nothing            none",
        "of one depth.2     31",
        "options.adam.beta  0.9",
        "options.loss       l1",
        "options.steps      2",
        "options.taps       1, 2",
    ]


def test_info_of_a_server_that_is_not_there_is_one_line(capsys) -> None:
    assert main(["info", "http://127.0.0.1:1/net.safetensors"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("elasticnet: http://127.0.0.1:1/net.safetensors: cannot be read (")
    assert said.count("\n") == 1
