"""From sizes as people give them to a `Workload`, refusing what the model cannot make."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from registry.errors import InvalidInput
from registry.workload import Shape, Workload

Size = tuple[int, int]
"""Width and height in pixels, in the order people write them."""
MAX_BATCH_SIZE = 1024
"""Far over what any device holds; a slip of the keyboard shall not be counted for minutes."""


def shapes_of(sizes: Sequence[Size], batch_sizes: Sequence[int]) -> tuple[Shape, ...]:
    """Every size at every batch size, repeats dropped. Raises InvalidInput."""
    for number in (*batch_sizes, *(side for size in sizes for side in size)):
        if isinstance(number, bool) or not isinstance(number, int):
            raise InvalidInput(
                f"{number!r} is not a whole number", hint="Give sizes as numbers, such as 1024."
            )
    for batch_size in batch_sizes:
        if not 1 <= batch_size <= MAX_BATCH_SIZE:
            raise InvalidInput(
                f"batch size {batch_size} is not a number of pictures from 1 to {MAX_BATCH_SIZE}"
            )
    for width, height in sizes:
        if width < 1 or height < 1:
            raise InvalidInput(f"{width}x{height} is not a picture size")
    pairs = dict.fromkeys((size, batch) for size in sizes for batch in batch_sizes)
    return tuple(
        Shape(height=height, width=width, batch_size=batch) for (width, height), batch in pairs
    )


def workload_of(sizes: Sequence[Size], batch_sizes: Sequence[int]) -> Workload:
    """One workload of every size at every batch size. Raises InvalidInput."""
    return Workload(shapes=shapes_of(sizes, batch_sizes))


def require_factor(shapes: Iterable[Shape], factor: int, model: str) -> None:
    """Every height and width must divide by the model's factor. Raises InvalidInput naming the
    first that does not, and the nearest size that does."""
    for shape in shapes:
        if shape.height % factor or shape.width % factor:
            near = f"{_nearest(shape.width, factor)}x{_nearest(shape.height, factor)}"
            raise InvalidInput(
                f"{shape.width}x{shape.height} cannot be made by {model}: width and height must "
                f"be multiples of {factor}",
                hint=f"The nearest size is {near}.",
            )


def _nearest(length: int, factor: int) -> int:
    return max(1, round(length / factor)) * factor
