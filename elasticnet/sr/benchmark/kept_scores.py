"""What a benchmark has scored so far, kept in a file: one that was killed goes on where it stopped.

Each score stands in a line of its own, beside all that it depends on: the pixels of the images, the
weights of the network, and the settings. A later run takes it only if all of that is the same.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, BinaryIO, NamedTuple

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from elasticnet._files import make_writable_folder, strict_json, write_atomic
from elasticnet.sr.benchmark.scores import Depth, Image, Scores
from elasticnet.sr.metrics import OLD_PROTOCOLS
from elasticnet.sr.structure import structure_of

FILE_NAME = "scores.jsonl"
LOCK_NAME = "scores.lock"
DIGEST_LENGTH = 32  # hexadecimal digits, 128 bits
MAX_NAMES = 3  # of images that a message names
MADE_ELSEWHERE = "image "  # what a score depends on then begins with this


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
        weights: `digest_of_net` of the network, or what `made_elsewhere` returns of an image that
            another method has made; "" for bicubic.
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
            is_image = self.weights.startswith(MADE_ELSEWHERE)
            phrases.append("another image" if is_image else "other weights")
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
    """A score with all that the file says of it."""

    place: Place
    basis: Basis
    kept: KeptScore


class _CostLine(NamedTuple):
    """A cost with all that the file says of it."""

    place: CostPlace
    basis: Mapping[str, Any]
    cost: Mapping[str, Any]


class KeptScores:
    """The scores in a folder, to be used in a `with` statement: it holds the folder's lock.

    A score is found by what it depends on, whatever data set and network are called now; those of
    earlier weights and settings stay in the file. A line that a kill has cut off is no line.

    Args:
        folder: Where `scores.jsonl` is kept; made if need be.
        forget: Whether the scores of earlier runs are dropped.

    Raises:
        BlockingIOError: Another process scores into this folder.
        OSError: The folder cannot be made or written to.
    """

    def __init__(self, folder: str | os.PathLike[str], *, forget: bool = False) -> None:
        self.path = make_writable_folder(folder) / FILE_NAME
        self._scores: dict[str, _Line] = {}  # by what they depend on
        self._costs: dict[str, _CostLine] = {}
        self._newest: dict[Place, Basis] = {}  # what the newest score at each place depends on
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
        # Each line is flushed when it is written. Where that failed, it fails again, and the first
        # error is the one to be seen.
        with suppress(OSError):
            self._file.close()
        self._lock.release()

    def find(self, place: Place, basis: Basis) -> KeptScore | None:
        """Return the score of an earlier run; None if there is none, or something has changed.

        Args:
            place: Which score.
            basis: What it depends on now.
        """
        line = self._scores.get(_key(place, basis))
        return None if line is None else line.kept

    def change(self, place: Place, basis: Basis) -> str:
        """Return in a few words why the score of an earlier run is of no use now.

        Args:
            place: Which score.
            basis: What it depends on now.

        Returns:
            Such as "other weights"; empty if there is a score, or never was one at this place.
        """
        if self.find(place, basis) is not None or place not in self._newest:
            return ""
        return basis.difference(self._newest[place])

    def add(self, place: Place, basis: Basis, kept: KeptScore) -> None:
        """Keep a score.

        Args:
            place: Which score.
            basis: What it depends on.
            kept: The score.
        """
        line = _Line(place, basis, kept)
        self._take(line)
        self._write(_score_as_json(line))

    def find_cost(self, place: CostPlace, basis: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Return the cost that an earlier run has measured; None without, or if it has changed.

        Args:
            place: Which cost.
            basis: What it depends on now, as JSON can hold it: weights, machine, size.
        """
        line = self._costs.get(_key(place, basis))
        return None if line is None else line.cost

    def add_cost(self, place: CostPlace, basis: Mapping[str, Any], cost: Mapping[str, Any]) -> None:
        """Keep a cost.

        Args:
            place: Which cost.
            basis: What it depends on, as JSON can hold it.
            cost: The numbers by name.
        """
        line = _CostLine(place, basis, cost)
        self._costs[_key(place, basis)] = line
        self._write(_cost_as_json(line))

    def _open(self, forget: bool) -> BinaryIO:
        """Read what is there, leave out what is cut off, and open the file to add to it."""
        try:
            if not forget and self.path.exists():
                for text in self.path.read_bytes().split(b"\n"):
                    self._read(text)
            lines = [_score_as_json(line) for line in self._scores.values()]
            lines += [_cost_as_json(line) for line in self._costs.values()]
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
                self._take(_Line(place, _with_new_names(Basis(**line["basis"])), kept))
            elif line["kind"] == "cost":
                place = CostPlace(**line["place"])
                key = _key(place, line["basis"])
                self._costs[key] = _CostLine(place, line["basis"], line["cost"])
        except (ValueError, TypeError, KeyError):
            return

    def _take(self, line: _Line) -> None:
        key = _key(line.place, line.basis)
        self._scores.pop(key, None)  # so that the newest score comes last, in the file, too
        self._scores[key] = line
        self._newest[line.place] = line.basis

    def _write(self, line: Mapping[str, Any]) -> None:
        try:
            self._file.write(_as_text(line).encode())
            self._file.flush()  # what the system has, it keeps when this process is killed
        except OSError as error:
            reason = error.strerror or error
            raise OSError(error.errno, f"could not write {self.path} ({reason})") from error


def _with_new_names(basis: Basis) -> Basis:
    """What a score of an earlier version depends on, as it is called today."""
    protocol = basis.settings.get("protocol")
    if protocol not in OLD_PROTOCOLS:
        return basis
    return basis._replace(settings={**basis.settings, "protocol": OLD_PROTOCOLS[protocol]})


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


def made_elsewhere(digest: str) -> str:
    """Return what the score of another method's image depends on, where a network has its weights.

    Args:
        digest: `digest_of_images` of that image.
    """
    return MADE_ELSEWHERE + digest


def digest_of_net(net: nn.Module) -> str:
    """Return a digest of a network: its weights, its modules, and the arguments it was built with.

    Args:
        net: Any module.
    """
    digest = hashlib.sha256()
    digest.update(structure_of(net).encode())
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


def _key(place: Place | CostPlace, basis: Basis | Mapping[str, Any]) -> str:
    """What a score or a cost depends on, as a key: names are not in it."""
    return json.dumps([place.scale, place.depth, basis], sort_keys=True)


def _score_as_json(line: _Line) -> dict[str, Any]:
    return {
        "kind": "score",
        "place": line.place._asdict(),
        "psnr": line.kept.scores.psnr,
        "ssim": line.kept.scores.ssim,
        "made": line.kept.made,
        "basis": line.basis._asdict(),
    }


def _cost_as_json(line: _CostLine) -> dict[str, Any]:
    return {"kind": "cost", "place": line.place._asdict(), "basis": line.basis, "cost": line.cost}


def _as_text(line: Mapping[str, Any]) -> str:
    return json.dumps(strict_json(line, place="a score")) + "\n"
