"""What a benchmark has scored so far, kept in a file: one that was killed goes on where it stopped.

Each score stands in a line of its own, beside all that it depends on: the pixels of the images, the
weights of the network, and the settings. A later run takes it only if all of that is the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO, NamedTuple

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from elasticnet._files import make_writable_folder, strict_json, write_atomic
from elasticnet.sr.benchmark.scores import Depth, Image, Scores

FILE_NAME = "scores.jsonl"
LOCK_NAME = "scores.lock"
DIGEST_LENGTH = 32  # hexadecimal digits, 128 bits
MAX_NAMES = 3  # of images that a message names
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")  # of a function in a module's repr: each run another


class Place(NamedTuple):
    """Where a score stands in the tables.

    Attributes:
        data: The data set's name.
        scale: How many times as long each side became.
        image: The image's name.
        network: The network's label, or "bicubic" ("input" at scale 1).
        depth: Of the network; None for bicubic.
    """

    data: str
    scale: int
    image: str
    network: str
    depth: Depth | None


class Basis(NamedTuple):
    """What a score depends on.

    Attributes:
        pixels: `digest_of_images` of the LR and the HR image.
        weights: `digest_of_net` of the network; "" for bicubic.
        settings: The other things, such as the protocol, as JSON can hold them.
    """

    pixels: str
    weights: str
    settings: dict[str, Any]

    def difference(self, earlier: Basis) -> str:
        """Return in a few words what differs from an earlier one; empty if nothing does.

        Args:
            earlier: The other one.
        """
        phrases: list[str] = []
        if self.pixels != earlier.pixels:
            phrases.append("other pixels")
        if self.weights != earlier.weights:
            phrases.append("other weights")
        for name in sorted({*self.settings, *earlier.settings}):
            before = earlier.settings.get(name)
            if before != self.settings.get(name):
                phrases.append(f"{name} was {before}")
        return ", ".join(phrases)


class KeptScore(NamedTuple):
    """A score that an earlier run has left.

    Attributes:
        scores: PSNR and SSIM.
        made: `digest_of_images` of the image that was scored.
    """

    scores: Scores
    made: str


class CostPlace(NamedTuple):
    """Which cost: of which network at which depth.

    Attributes:
        network: The network's label.
        scale: At which it is scored.
        depth: Of the network.
    """

    network: str
    scale: int
    depth: Depth


class _Line(NamedTuple):
    """A score with what it depends on, as the file holds it."""

    basis: Basis
    kept: KeptScore


class KeptScores:
    """The scores in a folder, to be used in a `with` statement: it holds the folder's lock.

    A line that a kill has cut off is no line. Scores of what has changed stay in the file until
    they are replaced.

    Args:
        folder: Where `scores.jsonl` is kept; made if need be.
        forget: Whether the scores of earlier runs are dropped.

    Raises:
        BlockingIOError: Another process scores into this folder.
        OSError: The folder cannot be made or written to.
    """

    def __init__(self, folder: str | os.PathLike[str], *, forget: bool = False) -> None:
        self.path = make_writable_folder(folder) / FILE_NAME
        self._scores: dict[Place, _Line] = {}
        self._costs: dict[CostPlace, dict[str, Any]] = {}
        self._lock = FileLock(self.path.with_name(LOCK_NAME))
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise BlockingIOError(
                f"{folder}: another benchmark writes into this folder: wait for it, or choose "
                "another one"
            ) from None
        self._file = self._open(forget)

    def __enter__(self) -> KeptScores:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file and of its lock."""
        self._file.close()
        self._lock.release()

    def find(self, place: Place, basis: Basis) -> KeptScore | None:
        """Return the score of an earlier run; None if there is none, or something has changed.

        Args:
            place: Which score.
            basis: What it depends on now.
        """
        line = self._scores.get(place)
        if line is None or line.basis != basis:
            return None
        return line.kept

    def change(self, place: Place, basis: Basis) -> str:
        """Return in a few words why the score of an earlier run is of no use now.

        Args:
            place: Which score.
            basis: What it depends on now.

        Returns:
            Such as "other weights"; empty if nothing has changed, or there is no earlier score.
        """
        line = self._scores.get(place)
        return "" if line is None else basis.difference(line.basis)

    def add(self, place: Place, basis: Basis, kept: KeptScore) -> None:
        """Keep a score.

        Args:
            place: Which score.
            basis: What it depends on.
            kept: The score.
        """
        self._scores[place] = _Line(basis, kept)
        self._write(_score_as_json(place, basis, kept))

    def find_cost(self, place: CostPlace, basis: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the cost that an earlier run has measured; None without, or if it has changed.

        Args:
            place: Which cost.
            basis: What it depends on now, as JSON can hold it: weights, machine, size.
        """
        entry = self._costs.get(place)
        if entry is None or entry["basis"] != basis:
            return None
        return entry["cost"]

    def add_cost(self, place: CostPlace, basis: Mapping[str, Any], cost: Mapping[str, Any]) -> None:
        """Keep a cost.

        Args:
            place: Which cost.
            basis: What it depends on, as JSON can hold it.
            cost: The numbers by name.
        """
        self._costs[place] = {"basis": dict(basis), "cost": dict(cost)}
        self._write(_cost_as_json(place, self._costs[place]))

    def _open(self, forget: bool) -> BinaryIO:
        """Read what is there, leave out what is cut off or replaced, and open the file to add."""
        try:
            if not forget and self.path.exists():
                for text in self.path.read_bytes().split(b"\n"):
                    self._read(text)
            lines = [
                _score_as_json(place, line.basis, line.kept) for place, line in self._scores.items()
            ]
            lines += [_cost_as_json(place, entry) for place, entry in self._costs.items()]
            write_atomic(self.path, "".join(_as_text(line) for line in lines))
            return open(self.path, "ab")
        except BaseException:
            self._lock.release()
            raise

    def _read(self, text: bytes) -> None:
        """Take one line of the file; one that is damaged is passed over, and scored anew."""
        try:
            line = json.loads(text)
            if line["kind"] == "score":
                place = Place(**line["place"])
                scores = Scores(psnr=float(line["psnr"]), ssim=float(line["ssim"]))
                kept = KeptScore(scores, line["made"])
                self._scores[place] = _Line(Basis(**line["basis"]), kept)
            elif line["kind"] == "cost":
                entry = {"basis": line["basis"], "cost": line["cost"]}
                self._costs[CostPlace(**line["place"])] = entry
        except (ValueError, TypeError, KeyError):
            return

    def _write(self, line: Mapping[str, Any]) -> None:
        self._file.write(_as_text(line).encode())
        self._file.flush()  # what the system has, it keeps when this process is killed


def survey(kept: KeptScores, wanted: Iterable[tuple[Place, Basis]]) -> list[str]:
    """Return lines that say what is taken over from earlier runs, and what is scored anew and why.

    Args:
        kept: What earlier runs have scored.
        wanted: All scores of this run, and what they depend on.
    """
    is_complete: dict[str, bool] = {}  # by image: whether all its scores are there
    changed: dict[tuple[str, str], dict[str, None]] = {}  # by network and reason: the images
    for place, basis in wanted:
        image = f"{place.data} x{place.scale} {place.image}"
        is_there = kept.find(place, basis) is not None
        is_complete[image] = is_complete.get(image, True) and is_there
        reason = kept.change(place, basis)
        if reason:
            changed.setdefault((place.network, reason), {})[image] = None
    lines: list[str] = []
    num_complete = sum(is_complete.values())
    if num_complete > 0:
        lines.append(
            f"{num_complete} of {len(is_complete)} images were scored by an earlier run into "
            f"{kept.path.parent}, and are not scored again"
        )
    for (network, reason), images in changed.items():
        named = ", ".join(list(images)[:MAX_NAMES])
        etc = ", ..." if len(images) > MAX_NAMES else ""
        lines.append(f"scored anew: {network}, {len(images)} images ({named}{etc}): {reason}")
    return lines


def digest_of_images(*images: Image) -> str:
    """Return a digest of the pixels and the sizes of images.

    Args:
        *images: uint8 (h, w, 3) each.
    """
    digest = hashlib.sha256()
    for image in images:
        digest.update(repr(image.shape).encode())
        digest.update(image.tobytes())
    return digest.hexdigest()[:DIGEST_LENGTH]


def digest_of_net(net: nn.Module) -> str:
    """Return a digest of a network: its weights, its modules, and the arguments it was built with.

    Args:
        net: Any module.
    """
    digest = hashlib.sha256()
    digest.update(ADDRESS.sub("", repr(net)).encode())
    digest.update(repr(getattr(net, "origin", None)).encode())
    for name, value in net.state_dict().items():
        digest.update(name.encode())
        if isinstance(value, Tensor):
            digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
            # as bytes: NumPy has no bfloat16
            flat = value.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().tobytes())
        else:
            digest.update(repr(value).encode())
    return digest.hexdigest()[:DIGEST_LENGTH]


def _score_as_json(place: Place, basis: Basis, kept: KeptScore) -> dict[str, Any]:
    return {
        "kind": "score",
        "place": place._asdict(),
        "psnr": kept.scores.psnr,
        "ssim": kept.scores.ssim,
        "made": kept.made,
        "basis": basis._asdict(),
    }


def _cost_as_json(place: CostPlace, entry: Mapping[str, Any]) -> dict[str, Any]:
    return {"kind": "cost", "place": place._asdict(), **entry}


def _as_text(line: Mapping[str, Any]) -> str:
    return json.dumps(strict_json(line, place="a score")) + "\n"
