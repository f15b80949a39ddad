"""What every type of the vocabulary shares: frozen, strict about keys, comparable by value."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, Mapping
from typing import Annotated, Any, Generic, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, PlainSerializer

Value = TypeVar("Value")


class FrozenDict(Mapping[str, Value], Generic[Value]):
    """A hashable, read-only mapping in key order."""

    __slots__ = ("_items",)

    def __init__(self, mapping: Mapping[str, Value]) -> None:
        self._items = dict(sorted(mapping.items()))

    def __getitem__(self, key: str) -> Value:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def items(self) -> ItemsView[str, Value]:
        """Faster than by key, one after another: predictions go through hundreds of layers."""
        return self._items.items()

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(tuple(self._items.items()))

    def __repr__(self) -> str:
        return repr(self._items)

    def __copy__(self) -> FrozenDict[Value]:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenDict[Value]:
        return self


def _thaw(mapping: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _thaw(value) if isinstance(value, FrozenDict) else value
        for key, value in mapping.items()
    }


FrozenMapping = Annotated[Mapping[str, Value], AfterValidator(FrozenDict), PlainSerializer(_thaw)]
"""A field that holds a `FrozenDict`, written as a JSON object."""


class Frozen(BaseModel):
    """Base of the vocabulary: immutable, unknown keys refused, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
