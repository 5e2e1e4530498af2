from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import elasticnet
from elasticnet.card import DepthCard, DepthRow, Metric, card_of, not_rising, store_card
from elasticnet.card.machine import Machine, machine_key, this_machine
from elasticnet.card.report import caption, draw, markdown, markdown_table, write_report
from elasticnet.checkpoint import read_header, write_header
from elasticnet.sr import asrn
from elasticnet.sr.card_metrics import with_titles

MACHINE = Machine(
    processor="A Processor", threads=2, system="Linux x86_64", torch="2.6.0", dtype="float32"
)
ACCURACY = Metric("accuracy", unit="%", decimals=1)
PERPLEXITY = Metric("perplexity", lower_is_better=True)
DATE = "2026-01-31T12:00:00+00:00"
MIB = 2**20 / 10**6  # of the first format's MB in MB
OLD_FILE = Path(__file__).parent.parent / "checkpoint" / "old" / "edsr_x2_with_card.safetensors"
# What the version that wrote OLD_FILE made of its card, but for the memory in 2**20 bytes.
OLD_PAGE = """# Depth card

A Processor AVX2, 2 threads, Linux x86_64, torch 2.6.0, float32; input 1x3x12x10; 20 passes at \
each depth; 2026-01-31T12:00:00+00:00; PSNR and SSIM on Set5 x2, 5 images, protocol matlab-y

| depth | parameters | GMACs | ms | p95 ms | peak MB | images/s | input MPix/s | PSNR (dB) | SSIM |
| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| 1 | 4,555 | 0.0006188 | 0.1250 | 0.1875 | 25.17 | 8,000 | 0.960 | 30.25 | 0.8000 |
| 2 | 5,723 | 0.0007571 | 0.1562 | 0.1719 | 23.59 | 6,400 | 0.768 | 30.50 | 0.8500 |
| 3 | 6,891 | 0.0008953 | 0.1875 | 0.2500 | 33.55 | 5,333 | 0.640 | 31.12 | 0.8750 |

Warnings:

- memory_mb falls with depth: 24 at depth 1, 22.5 at 2 (in 2**20 bytes)
"""


def row(depth: int, latency_ms: float = 10.0, macs: int = 0, **numbers: Any) -> DepthRow:
    """Return a row; what is no cost is a metric."""
    memory_mb = numbers.pop("memory_mb", None)
    return DepthRow(
        depth=depth,
        parameters=100 * depth,
        macs=macs or 1000 * depth,
        latency_ms=latency_ms,
        latency_p95_ms=latency_ms,
        memory_mb=memory_mb,
        quality=numbers,
    )


def card(*rows: DepthRow, **changes: Any) -> DepthCard:
    """Return a card of these rows, with the metrics that they hold."""
    known = {"accuracy": ACCURACY, "perplexity": PERPLEXITY}
    content: dict[str, Any] = {
        "machine": MACHINE,
        "input_shape": (1, 3, 4, 5),
        "repeats": 40,
        "date": DATE,
        "rows": rows,
        "per_pass": {"samples": 1},
        "metrics": tuple(known[name] for name in rows[0].quality) if rows else (),
    }
    return DepthCard(**{**content, **changes})


@st.composite
def cards(draw: st.DrawFn) -> DepthCard:
    depths = sorted(draw(st.sets(st.integers(1, 60), min_size=1, max_size=6)))
    number = st.floats(0.1, 1000)
    with_memory, with_quality = draw(st.booleans()), draw(st.booleans())
    # depth_for(macs=) refuses numbers that do not rise
    many = st.sets(st.integers(1, 10**12), min_size=len(depths), max_size=len(depths))
    macs = sorted(draw(many))
    rows = []
    for index, depth in enumerate(depths):
        more = {"memory_mb": draw(number)} if with_memory else {}
        if with_quality:
            more |= {"accuracy": draw(number), "perplexity": draw(st.floats(-1, 1))}
        rows.append(row(depth, draw(number), macs[index], **more))
    threads = draw(st.sampled_from([None, 1, 16]))
    return card(
        *rows,
        machine=replace(MACHINE, threads=threads),
        data=draw(st.sampled_from([None, "Set5 x4"])),
    )


# --- the deepest depth that fits


@given(cards(), st.data())
def test_depth_for_is_the_deepest_that_a_loop_finds(card, data):
    names = ["latency_ms", "macs", *card.rows[0].quality]
    if card.rows[0].memory_mb is not None:
        names.append("memory_mb")
    chosen = data.draw(st.sets(st.sampled_from(names), min_size=1))
    budgets = {}
    for name in sorted(chosen):
        values = st.sampled_from([each.value_of(name) for each in card.rows])
        # exactly what a depth takes, too
        budgets[name] = data.draw(values) * data.draw(st.sampled_from([0.9, 1, 1.1]))
    deepest = None
    for each in card.rows:
        fits = True
        for name, value in budgets.items():
            taken = each.value_of(name)
            if name == "accuracy":
                fits = fits and taken >= value
            else:
                fits = fits and taken <= value
        if fits:
            deepest = each.depth
    if deepest is not None:
        assert card.depth_for(**budgets) == deepest
        return
    with pytest.raises(
        ValueError, match=r"no depth fits .*: depth \d+ comes nearest, with "
    ) as refused:
        card.depth_for(**budgets)
    nearest = card.row(int(str(refused.value).partition(": depth ")[2].split()[0]))
    missed = str(refused.value).partition("with ")[2]
    for name, value in budgets.items():
        over = nearest.value_of(name) - value
        misses = over < 0 if name == "accuracy" else over > 0
        assert (name in missed) == misses


def test_a_classifier_chooses_by_accuracy():
    two = card(row(1, 20.0, accuracy=52.0), row(2, 30.0, accuracy=61.0))
    assert two.depth_for(accuracy=50) == 2
    assert two.depth_for(accuracy=50, latency_ms=25) == 1
    assert two.depth_for(accuracy=0) == 2


def test_where_lower_is_better_a_budget_is_a_limit_from_above():
    three = card(row(1, perplexity=30.0), row(2, perplexity=20.0), row(3, perplexity=22.0))
    assert three.depth_for(perplexity=25) == 3
    assert three.depth_for(perplexity=20) == 2
    with pytest.raises(ValueError) as refused:  # noqa: PT011 (the whole message is compared)
        three.depth_for(perplexity=16)
    assert str(refused.value) == (
        "no depth fits perplexity <= 16: depth 2 comes nearest, with perplexity 20, 4 too high"
    )


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        (
            {"latency_ms": 15},
            "no depth fits latency_ms <= 15 ms: depth 1 comes nearest, "
            "with latency_ms 20 ms, 5 ms too much",
        ),
        (
            {"accuracy": 31.5},
            "no depth fits accuracy >= 31.5 %: depth 3 comes nearest, "
            "with accuracy 31 %, 0.5 % too low",
        ),
        (
            {"macs": 400},
            "no depth fits macs <= 400 MACs: depth 1 comes nearest, "
            "with macs 1000 MACs, 600 MACs too much",
        ),
        (
            {"memory_mb": 40, "latency_ms": 12},
            "no depth fits latency_ms <= 12 ms and memory_mb <= 40 MB: depth 1 comes nearest, "
            "with latency_ms 20 ms, 8 ms too much and memory_mb 50 MB, 10 MB too much",
        ),
        # Each of the two fits somewhere, both nowhere: depth 2 is 0.2 short, depth 3 takes a third
        # too long.
        (
            {"latency_ms": 30, "accuracy": 30.7},
            "no depth fits latency_ms <= 30 ms and accuracy >= 30.7 %: depth 2 comes nearest, "
            "with accuracy 30.5 %, 0.2 % too low",
        ),
    ],
)
def test_no_fit_says_which_budget_which_depth_and_by_how_much(budgets, message):
    three = card(
        row(1, 20.0, memory_mb=50.0, accuracy=30.0),
        row(2, 30.0, memory_mb=60.0, accuracy=30.5),
        row(3, 40.0, memory_mb=70.0, accuracy=31.0),
    )
    assert three.depth_for(latency_ms=35, accuracy=30.2) == 2
    with pytest.raises(ValueError) as refused:  # noqa: PT011 (the whole message is compared)
        three.depth_for(**budgets)
    assert str(refused.value) == message


def test_misses_are_compared_as_parts_of_their_budgets():
    """0.2 % of the time at depth 2, 2.5 % of the accuracy at depth 1."""
    slow = card(row(1, 900.0, accuracy=39.0), row(2, 1002.0, accuracy=41.0))
    with pytest.raises(
        ValueError, match="depth 2 comes nearest, with latency_ms 1002 ms, 2 ms too much"
    ):
        slow.depth_for(latency_ms=1000, accuracy=40)


def test_budgets_that_make_no_sense_are_refused():
    plain = card(row(1), row(2))
    with pytest.raises(
        ValueError, match="no budget given: expected at least one of latency_ms, memory_mb, macs"
    ):
        plain.depth_for()
    with pytest.raises(
        ValueError,
        match=r"accuracy 30: the card holds no accuracy; .*`elasticnet profile FILE --data DIR`",
    ):
        plain.depth_for(latency_ms=50, accuracy=30)
    with pytest.raises(
        ValueError, match=r"memory_mb 99: the card holds no memory_mb; .*memory=True"
    ):
        plain.depth_for(memory_mb=99)
    for wrong in (0, -1.5, math.nan, math.inf, True, "5"):
        with pytest.raises(ValueError, match=f"latency_ms {wrong!r}: expected a number above 0"):
            plain.depth_for(latency_ms=wrong)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="accuracy nan: expected a finite number"):
        card(row(1, accuracy=1.0)).depth_for(accuracy=math.nan)
    with pytest.raises(ValueError, match="milliseconds 5: the card holds no milliseconds"):
        plain.depth_for(milliseconds=5)
    with pytest.raises(ValueError, match="depth 7: this card has depths 1, 2"):
        plain.row(7)


@pytest.mark.parametrize("name", ["", "top 1", "class", "latency_ms", "quality", "depth"])
def test_names_that_no_metric_can_have(name):
    with pytest.raises(ValueError, match=f"metric {name!r}: expected an identifier"):
        Metric(name)


def test_every_row_has_every_metric():
    with pytest.raises(ValueError, match=r"quality at depth 2 by \[\]: expected \['accuracy'\]"):
        card(row(1, accuracy=50.0), row(2))


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
        (("format",), 4, "format 4, and this version reads up to 3: update elasticnet"),
        (
            ("rows", 0, "latency_spread_ms"),
            -1,
            "latency_spread_ms -1 at depth 1: expected a finite number, at least 0",
        ),
        (("per_pass",), 7, "per_pass 7: expected a dict"),
        (("per_pass", "samples"), 0, "per_pass 'samples' 0: expected a number above 0"),
        (("metrics",), {}, r"metrics \{\}: expected a list"),
        (("rows", 0, "quality"), 5, "quality 5: expected a dict"),
        (("rows", 0, "quality"), {"x": "1"}, "x '1' at depth 1: expected a finite number"),
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


def test_a_card_of_the_second_format_has_no_spread():
    with_spread = card(row(1), replace(row(2), latency_spread_ms=0.5))
    content = with_spread.to_json()
    content["format"] = 2
    for each in content["rows"]:
        del each["latency_spread_ms"]
    assert DepthCard.from_json(content) == card(row(1), row(2))


def test_the_spread_is_stored_and_stands_beside_the_median():
    both = card(row(1, 1483.0), replace(row(2, 1500.0), latency_spread_ms=420.0))
    assert DepthCard.from_json(json.loads(json.dumps(both.to_json()))) == both
    lines = markdown_table(both).splitlines()
    assert [line.split(" | ")[3] for line in lines[2:]] == ["1,483", "1,500 ± 420"]
    assert "(ms: median ± half the distance between the quartiles)" in caption(both)
    assert "±" not in caption(card(row(1, 1483.0)))


@given(st.data())
def test_every_key_is_needed(data):
    content = card(row(1), row(2)).to_json()
    place = data.draw(st.sampled_from([content, content["machine"], content["rows"][1]]))
    # without a format it is a card of the first one
    gone = data.draw(st.sampled_from(sorted(place.keys() - {"format"})))
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
    other = card(row(1), row(2))
    mine = card(row(1), row(2), machine=this_machine())
    again = card(row(1, latency_ms=5.0), row(2), machine=this_machine())
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


def test_a_card_of_other_depths_than_the_file_is_neither_stored_nor_read(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    elasticnet.save(asrn(2, num_blocks=2), path)
    before = path.read_bytes()
    of_another_net = card(row(1), machine=this_machine())

    problem = "a depth card of depths 1, and the file has taps at depths 1, 2: it is of another net"
    with pytest.raises(ValueError, match=f"net.safetensors: {problem}"):
        store_card(path, of_another_net)
    assert path.read_bytes() == before

    header = read_header(path)
    header["cards"][machine_key()] = of_another_net.to_json()
    with pytest.raises(ValueError, match=f"this file: {problem}"):
        card_of(header)


def test_a_card_does_not_change_with_the_json_that_it_was_read_from() -> None:
    stored = card(row(1, accuracy=50.0)).to_json()
    read = DepthCard.from_json(stored)

    stored["rows"][0]["quality"]["accuracy"] = 99.0

    assert read.row(1).quality == {"accuracy": 50.0}


# --- warnings


def test_what_does_not_rise_is_named():
    rows = [
        row(1, 10, memory_mb=50.0, accuracy=30.0, perplexity=5.0),
        row(2, 9, memory_mb=49.5, accuracy=29.9, perplexity=4.0),
        row(3, 8.9, 2000, memory_mb=40.0, accuracy=29.9, perplexity=4.5),
    ]
    rows[1] = replace(rows[1], parameters=100)
    assert not_rising(rows, [ACCURACY, PERPLEXITY]) == [
        "parameters does not rise with depth: 100 at depth 1, 100 at 2",
        "latency_ms falls with depth: 10 at depth 1, 9 at 2",
        "accuracy falls with depth: 30 at depth 1, 29.9 at 2",
        "macs does not rise with depth: 2000 at depth 2, 2000 at 3",
        "memory_mb falls with depth: 49.5 at depth 2, 40 at 3",
        "perplexity rises with depth: 4 at depth 2, 4.5 at 3",
    ]
    assert not_rising([row(1), row(2)]) == []


# --- to read


def full() -> DepthCard:
    rows = (
        row(1, 10, 2_500_000_000, memory_mb=33.3, accuracy=30.0, perplexity=0.0),
        row(2, 12_345.6, 3_500_000_000, memory_mb=33.3, accuracy=31.25, perplexity=-0.91234),
    )
    return card(
        *rows,
        data="the test set",
        per_pass={"samples": 1, "input MB": 0.015},
        warnings=("something falls",),
    )


def test_the_table():
    assert markdown_table(full()).splitlines() == [
        "| depth | parameters | GMACs | ms | p95 ms | peak MB | samples/s | input MB/s "
        "| accuracy (%) | perplexity |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| 1 | 100 | 2.500 | 10.00 | 10.00 | 33.30 | 100 | 1.50 | 30.0 | 0 |",
        "| 2 | 200 | 3.500 | 12,346 | 12,346 | 33.30 | 0.0810 | 0.00122 | 31.2 | -0.9123 |",
    ]


def test_the_caption_and_the_page():
    said = f"{MACHINE.key}; input 1x3x4x5; 40 passes at each depth; {DATE}"
    assert caption(full()) == f"{said}; accuracy and perplexity on the test set"
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


# --- cards of the first format


def test_an_old_card_loads_and_shows_as_before_with_memory_in_millions_of_bytes():
    (stored,) = read_header(OLD_FILE)["cards"].values()
    old = with_titles(DepthCard.from_json(stored))
    assert [each.memory_mb for each in old.rows] == [24 * MIB, 22.5 * MIB, 32 * MIB]
    assert markdown(old) == OLD_PAGE
    assert old.depth_for(psnr=30.4, memory_mb=25) == 2
    assert DepthCard.from_json(old.to_json()) == old


def test_an_old_card_keeps_what_was_measured_at_every_depth():
    (stored,) = read_header(OLD_FILE)["cards"].values()
    for each in stored["rows"]:
        each["psnr"] = each["memory_mb"] = None
    stored["rows"][1]["ssim"] = None
    old = DepthCard.from_json(stored)
    assert old.metrics == ()
    assert old.per_pass == {"images": 1, "mpix": 0.00012}
    assert [each.memory_mb for each in old.rows] == [None] * 3


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("rows",), 5, "rows 5: expected a list"),
        (("rows", 0, "latency_ms"), "1", "latency_ms '1' at depth 1: expected a finite number"),
        (("rows", 0, "memory_mb"), "1", "memory_mb '1' at depth 1: expected a finite number"),
        (("rows", 0, "psnr"), "1", "psnr '1' at depth 1: expected a finite number"),
        (("warnings",), 5, "warnings 5: expected a list"),
        (("extra",), 5, "'extra' is unknown"),
    ],
)
def test_a_damaged_old_card_is_refused(path, value, message):
    (stored,) = read_header(OLD_FILE)["cards"].values()
    place = stored
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(ValueError, match=f"depth card: {message}"):
        DepthCard.from_json(stored)


# --- without torch

SHOWN_WITHOUT_TORCH = """
import sys
from elasticnet.card import DepthCard, DepthRow, store_card
from elasticnet.card.report import caption, markdown_table
from elasticnet.checkpoint import read_header, read_sizes
header = read_header(sys.argv[1])
read_sizes(sys.argv[1])
for stored in header["cards"].values():
    card = DepthCard.from_json(stored)
    print(caption(card), markdown_table(card))
    store_card(sys.argv[1], card)
sys.exit("torch was imported" if "torch" in sys.modules else 0)
"""


def test_a_card_is_read_shown_and_stored_without_torch(tmp_path):
    file = tmp_path / "net.safetensors"
    file.write_bytes(OLD_FILE.read_bytes())
    command = [sys.executable, "-c", SHOWN_WITHOUT_TORCH, str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "A Processor AVX2" in done.stdout
