from __future__ import annotations

import json
import math
from dataclasses import asdict, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import elasticnet
from elasticnet.card import DepthCard, DepthRow, card_of, not_rising, store_card
from elasticnet.card.measuring import Machine, machine_key, this_machine
from elasticnet.card.report import caption, draw, markdown, markdown_table, write_report
from elasticnet.checkpoint import read_header, write_header
from elasticnet.sr import asrn

MACHINE = Machine("A Processor", 2, "Linux x86_64", "2.6.0", "float32")
DATE = "2026-01-31T12:00:00+00:00"


def row(depth: int, latency_ms: float = 10.0, macs: int = 0, **numbers) -> DepthRow:
    return DepthRow(
        depth,
        100 * depth,
        macs or 1000 * depth,
        latency_ms,
        latency_ms,
        1e3 / latency_ms,
        **numbers,
    )


def card(*rows: DepthRow, **changes) -> DepthCard:
    return DepthCard(
        **{
            "machine": MACHINE,
            "input_shape": (1, 3, 4, 5),
            "repeats": 40,
            "date": DATE,
            "rows": rows,
            **changes,
        }
    )


@st.composite
def cards(draw: st.DrawFn) -> DepthCard:
    depths = sorted(draw(st.sets(st.integers(1, 60), min_size=1, max_size=6)))
    number = st.floats(0.1, 1000)
    with_memory, with_quality = draw(st.booleans()), draw(st.booleans())
    rows = []
    for depth in depths:
        more = {"memory_mb": draw(number)} if with_memory else {}
        more |= (
            {"psnr": draw(st.floats(10, 60)), "ssim": draw(st.floats(-1, 1))}
            if with_quality
            else {}
        )
        rows.append(row(depth, draw(number), draw(st.integers(1, 10**12)), **more))
    threads = draw(st.sampled_from([None, 1, 16]))
    return card(
        *rows,
        machine=replace(MACHINE, threads=threads),
        data=draw(st.sampled_from([None, "Set5 x4"])),
    )


# --- the deepest depth that fits


@given(cards(), st.data())
def test_depth_for_is_the_deepest_that_a_loop_finds(card, data):
    names = ["latency_ms", "macs"]
    names += ["memory_mb"] * (card.rows[0].memory_mb is not None) + ["psnr"] * (
        card.rows[0].psnr is not None
    )
    chosen = data.draw(st.sets(st.sampled_from(names), min_size=1))
    budgets = {}
    for name in sorted(chosen):
        values = st.sampled_from([getattr(each, name) for each in card.rows])
        # exactly what a depth takes, too
        budgets[name] = data.draw(values) * data.draw(st.sampled_from([0.9, 1, 1.1]))
    deepest = None
    for each in card.rows:
        fits = True
        for name, value in budgets.items():
            taken = getattr(each, name)
            if name == "psnr":
                fits = fits and taken >= value
            else:
                fits = fits and taken <= value
        if fits:
            deepest = each.depth
    if deepest is not None:
        assert card.depth_for(**budgets) == deepest
    else:
        with pytest.raises(
            ValueError, match=r"no depth fits .*: depth \d+ comes nearest, with "
        ) as refused:
            card.depth_for(**budgets)
        nearest = card.row(int(str(refused.value).partition(": depth ")[2].split()[0]))
        missed = str(refused.value).partition("with ")[2]
        for name, value in budgets.items():
            over = getattr(nearest, name) - value
            assert (name in missed) == ((-over if name == "psnr" else over) > 0)


def test_no_fit_says_which_budget_which_depth_and_by_how_much():
    three = card(
        row(1, 20.0, memory_mb=50.0, psnr=30.0),
        row(2, 30.0, memory_mb=60.0, psnr=30.5),
        row(3, 40.0, memory_mb=70.0, psnr=31.0),
    )
    assert three.depth_for(latency_ms=35, psnr=30.2) == 2
    for budgets, message in (
        (
            {"latency_ms": 15},
            "no depth fits latency_ms <= 15 ms: depth 1 comes nearest, with latency_ms 20 ms, 5 ms too much",
        ),
        (
            {"psnr": 31.5},
            "no depth fits psnr >= 31.5 dB: depth 3 comes nearest, with psnr 31 dB, 0.5 dB too low",
        ),
        (
            {"macs": 400},
            "no depth fits macs <= 400 MACs: depth 1 comes nearest, with macs 1000 MACs, 600 MACs too much",
        ),
        (
            {"memory_mb": 40, "latency_ms": 12},
            "no depth fits latency_ms <= 12 ms and memory_mb <= 40 MB: depth 1 comes nearest, "
            "with latency_ms 20 ms, 8 ms too much and memory_mb 50 MB, 10 MB too much",
        ),
        # Each of the two fits somewhere, both nowhere: depth 2 is 0.2 dB short, depth 3 takes a
        # third too long.
        (
            {"latency_ms": 30, "psnr": 30.7},
            "no depth fits latency_ms <= 30 ms and psnr >= 30.7 dB: depth 2 comes nearest, "
            "with psnr 30.5 dB, 0.2 dB too low",
        ),
    ):
        with pytest.raises(ValueError) as refused:  # noqa: PT011 (the whole message is compared)
            three.depth_for(**budgets)
        assert str(refused.value) == message
    # Misses are compared as parts of their budgets: 0.2 % of the time here, 2.5 % of the PSNR at
    # depth 1.
    slow = card(row(1, 900.0, psnr=39.0), row(2, 1002.0, psnr=41.0))
    with pytest.raises(
        ValueError, match="depth 2 comes nearest, with latency_ms 1002 ms, 2 ms too much"
    ):
        slow.depth_for(latency_ms=1000, psnr=40)


def test_budgets_that_make_no_sense_are_refused():
    plain = card(row(1), row(2))
    with pytest.raises(
        ValueError,
        match="no budget given: expected at least one of latency_ms, memory_mb, macs, psnr",
    ):
        plain.depth_for()
    with pytest.raises(
        ValueError, match=r"psnr 30: the card holds no psnr; .*`elasticnet profile FILE --data DIR`"
    ):
        plain.depth_for(latency_ms=50, psnr=30)
    with pytest.raises(
        ValueError, match=r"memory_mb 99: the card holds no memory_mb; .*memory=True"
    ):
        plain.depth_for(memory_mb=99)
    for wrong in (0, -1.5, math.nan, math.inf, True, "5"):
        with pytest.raises(ValueError, match=f"latency_ms {wrong!r}: expected a number above 0"):
            plain.depth_for(latency_ms=wrong)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="milliseconds"):
        plain.depth_for(milliseconds=5)  # pyright: ignore[reportCallIssue]
    with pytest.raises(ValueError, match="depth 7: this card has depths 1, 2"):
        plain.row(7)


# --- the card as JSON


@given(cards())
def test_json_round_trip(card):
    text = json.dumps(card.to_json(), allow_nan=False)
    assert DepthCard.from_json(json.loads(text)) == card
    assert json.dumps(DepthCard.from_json(json.loads(text)).to_json()) == text


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ((), 5, "it 5: expected a dict"),
        (("machine",), [], r"machine \[\]: expected a dict"),
        (("machine", "processor"), 7, "processor 7: expected a string"),
        (("machine", "threads"), "2", "threads '2': expected"),
        (("machine", "color"), "red", "'color' is unknown: machine has dtype, processor"),
        (("input_shape",), "1x3", "input_shape '1x3': expected a list"),
        (("input_shape",), [1, 2.5], "input_shape 2.5: expected int"),
        (("repeats",), 0, "repeats 0: expected a whole number above 0"),
        (("repeats",), True, "repeats True: expected a whole number above 0"),
        (("date",), 2026, "date 2026: expected a string"),
        (("data",), 3, "data 3: expected a string or null"),
        (("rows",), [], "no depths in it"),
        (("rows",), [5], "rows 5: expected Mapping"),
        (
            ("rows", 0, "latency_ms"),
            "fast",
            "latency_ms 'fast' at depth 1: expected a finite number",
        ),
        (
            ("rows", 0, "latency_ms"),
            math.nan,
            "latency_ms nan at depth 1: expected a finite number",
        ),
        (("rows", 0, "latency_ms"), None, "latency_ms None at depth 1"),
        (
            ("rows", 0, "memory_mb"),
            -1,
            "memory_mb -1 at depth 1: expected a finite number, at least 0",
        ),
        (("rows", 0, "parameters"), 1.5, "parameters 1.5 at depth 1: expected a whole number"),
        (("rows", 0, "macs"), 10**400, "macs 1000.* at depth 1: expected a whole number"),
        (("rows", 0, "depth"), 0, "depth 0 at depth 0: expected a whole number, at least 1"),
        (("rows", 1, "depth"), 1, "depth 1 after depth 1: expected rising depths"),
        (("rows", 1, "parameters"), 99, "99 parameters at depth 2, fewer than the 100 of depth 1"),
        (("warnings",), [1], "warnings 1: expected str"),
        (("extra",), 1, "'extra' is unknown: it has data, date"),
    ],
)
def test_wrong_json_is_refused_by_name_and_value(path, value, message):
    content = card(row(1), row(2)).to_json()
    if path:
        place = content
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value
    else:
        content = value
    with pytest.raises(ValueError, match=f"depth card: {message}"):
        DepthCard.from_json(content)


@given(st.data())
def test_every_key_is_needed(data):
    content = card(row(1), row(2)).to_json()
    place = data.draw(st.sampled_from([content, content["machine"], content["rows"][1]]))
    gone = data.draw(st.sampled_from(sorted(place)))
    del place[gone]
    with pytest.raises(ValueError, match=f"depth card: '{gone}' is missing"):
        DepthCard.from_json(content)


# --- machines


def test_the_key_names_what_times_hang_on():
    assert MACHINE.key == "A Processor, 2 threads, Linux x86_64, torch 2.6.0, float32"
    assert replace(MACHINE, threads=1).key.startswith("A Processor, 1 thread, ")
    assert replace(MACHINE, threads=None).key == "A Processor, Linux x86_64, torch 2.6.0, float32"
    here = this_machine()
    assert here.threads == torch.get_num_threads()
    assert machine_key() == machine_key("cpu", torch.float32, here.threads) == here.key
    assert len({machine_key(), machine_key(dtype=torch.bfloat16), machine_key(threads=99)}) == 3


def test_a_file_keeps_a_card_for_each_machine(tmp_path):
    net, path = asrn(2, num_blocks=2).eval(), tmp_path / "net.safetensors"
    elasticnet.save(net, path)
    with pytest.raises(
        ValueError,
        match=r"net.safetensors: no depth card of this machine \(.*float32\), cards held: none",
    ):
        card_of(path)
    other, mine, again = (
        card(row(1)),
        card(row(2), machine=this_machine()),
        card(row(1), machine=this_machine()),
    )
    for each in (other, mine, again):
        store_card(path, each)
    header = read_header(path)
    assert set(header["cards"]) == {MACHINE.key, machine_key()}
    # an earlier card of the same machine is replaced
    assert card_of(path) == card_of(header) == again
    with pytest.raises(
        ValueError,
        match=r"bfloat16\).* A Processor, 2 threads.*`elasticnet profile .*net.safetensors`",
    ):
        card_of(path, dtype=torch.bfloat16)
    x = torch.rand(1, 3, 8, 8)
    assert torch.equal(elasticnet.load(path)(x), net(x))

    header["cards"][machine_key()] = other.to_json()
    write_header(path, header)
    with pytest.raises(
        ValueError,
        match=r"net.safetensors: its card of this machine is damaged \(.*'A Processor, 2",
    ):
        card_of(path)
    with pytest.raises(ValueError, match=r"this file: its card .* 5: expected a dict"):
        card_of({"cards": {machine_key(): 5}})


# --- warnings


def test_what_does_not_rise_is_named():
    rows = [
        row(1, 10, memory_mb=50.0, psnr=30.0),
        row(2, 9, memory_mb=49.5, psnr=29.9),
        row(3, 8.9, 2000, memory_mb=40.0),
    ]
    rows[1] = replace(rows[1], parameters=100)
    assert not_rising(rows) == [
        "parameters does not rise with depth: 100 at depth 1, 100 at 2",
        "latency_ms falls with depth: 10 at depth 1, 9 at 2",
        "psnr falls with depth: 30 at depth 1, 29.9 at 2",
        "macs does not rise with depth: 2000 at depth 2, 2000 at 3",
        "memory_mb falls with depth: 49.5 at depth 2, 40 at 3",
    ]
    assert not_rising([row(1), row(2)]) == []


# --- to read


def full() -> DepthCard:
    numbers = {"mpix_per_second": 1.5, "memory_mb": 33.3, "ssim": 0.9}
    rows = (
        row(1, 10, 2_500_000_000, psnr=30.0, **numbers),
        row(2, 12_345.6, 3_500_000_000, psnr=31.25, **numbers),
    )
    return card(*rows, data="Set5 x4", warnings=("something falls",))


def test_the_table_and_the_caption():
    assert markdown_table(full()).splitlines() == [
        "| depth | parameters | GMACs | ms | p95 ms | peak MB | images/s | input MPix/s | PSNR (dB) | SSIM |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| 1 | 100 | 2.500 | 10.00 | 10.00 | 33.30 | 100 | 1.50 | 30.00 | 0.9000 |",
        "| 2 | 200 | 3.500 | 12,346 | 12,346 | 33.30 | 0.0810 | 1.50 | 31.25 | 0.9000 |",
    ]
    said = f"{MACHINE.key}; input 1x3x4x5; 40 passes at each depth; {DATE}"
    assert caption(full()) == f"{said}; PSNR and SSIM on Set5 x4"
    assert caption(card(row(1))) == said
    assert markdown(full(), "net").startswith(f"# net\n\n{said}")
    assert markdown(full()).endswith("\nWarnings:\n\n- something falls\n")
    assert "Warnings" not in markdown(card(row(1)))


def test_report_files(tmp_path):
    pytest.importorskip("matplotlib", reason="the figure needs the extra `figures`")
    page, values, figure = write_report(full(), tmp_path, "net")
    assert [path.name for path in (page, values, figure)] == [
        "net.card.md",
        "net.card.json",
        "net.card.png",
    ]
    assert page.read_text() == markdown(full(), "net")
    assert DepthCard.from_json(json.loads(values.read_text())) == full()
    drawn = [figure.read_bytes()]
    for index, other in enumerate(
        (card(row(1), row(2)), card(row(1, memory_mb=5.0), row(2, memory_mb=6.0)))
    ):
        draw(other, tmp_path / f"{index}.png")
        drawn.append((tmp_path / f"{index}.png").read_bytes())
    assert all(content.startswith(b"\x89PNG") for content in drawn)
    assert len(set(drawn)) == 3
    assert asdict(full())["rows"][0]["depth"] == 1
