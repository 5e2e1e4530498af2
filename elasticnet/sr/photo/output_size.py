"""How large a photograph is to become: a number of times, or as large as fits into a box."""

from __future__ import annotations

from dataclasses import dataclass

TOLERANCE = 1e-9  # part of a factor that is rounding, and asks for no larger network


@dataclass(frozen=True)
class OutputSize:
    """What the size of a result is to be; the picture is never stretched or cut.

    Attributes:
        times: How many times as long each side becomes; None where a box decides.
        width: Of the box in pixels; None where only its height is given.
        height: Of the box in pixels; None where only its width is given. A box of another shape
            than the picture is filled in one direction: the picture is as large as fits inside.

    Raises:
        ValueError: Neither or both of `times` and a box, or a number out of range.
    """

    times: float | None = None
    width: int | None = None
    height: int | None = None

    def __post_init__(self) -> None:
        has_box = self.width is not None or self.height is not None
        if has_box == (self.times is not None):
            raise ValueError("expected either a number of times or a box")
        if self.times is not None and not 1 < self.times < float("inf"):
            raise ValueError(f"{self.times:g} times: expected a number above 1")

    def times_for(self, size: tuple[int, int]) -> float:
        """Return how many times as long the sides of an image become, before rounding to pixels.

        Args:
            size: Height and width of the image.
        """
        if self.times is not None:
            return self.times
        height, width = size
        factors: list[float] = []
        if self.height is not None:
            factors.append(self.height / height)
        if self.width is not None:
            factors.append(self.width / width)
        return min(factors)

    def of(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return height and width of the result for an image.

        Args:
            size: Height and width of the image.

        Raises:
            ValueError: The result would not be larger than the image.
        """
        times = self.times_for(size)
        height, width = size
        if times <= 1:
            raise ValueError(
                f"it is {width}x{height} already, and {self.in_words} would not make it larger"
            )
        return round(height * times), round(width * times)

    @property
    def in_words(self) -> str:
        """The size as the command's options give it, such as "--to 3840x2160"."""
        if self.times is not None:
            return f"--scale {self.times:g}"
        return f"--to {self.width or ''}x{self.height or ''}"
