"""What compiled code could have read of a module, said so that another process says the same.

Of each module its class, settings, hooks and the layout of its tensors, never their values: those
are inputs of the code. What cannot be said is `Undescribable`.
"""

from __future__ import annotations

import enum
import functools
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import is_
from typing import Any

import torch
from torch import nn
from torch._library.custom_ops import CustomOpDef
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from tuner.pipeline.python_code import PRIMITIVES
from tuner.pipeline.replaced import CodeSeen

PLAIN_VALUES = (torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format)
TABLES = ("_parameters", "_buffers", "_modules")
NOT_READ = frozenset({"_compiled_call_impl", "_name_or_path", "extra_repr"})
"""Attributes that tracing does not read: how a module is called and printed, where it came from."""
HOOKS = frozenset(name for name in vars(nn.Module()) if name.endswith("_hooks"))
"""Tables that are empty nearly everywhere; only what is in one is said."""
MOST_DEEP = 12

Described = Any
"""Lists, strings and numbers: what JSON can say."""


class Undescribable(Exception):
    """Holds something that no key can stand for."""


@dataclass
class Watch:
    """What a description was made of. While that is in place, the description is true."""

    _dicts: list[tuple[dict[Any, Any], tuple[Any, ...], tuple[Any, ...]]] = field(
        default_factory=list
    )
    _sequences: list[tuple[Any, tuple[Any, ...]]] = field(default_factory=list)
    _empty: list[Any] = field(default_factory=list)
    _tensors: list[tuple[torch.Tensor, tuple[Any, ...]]] = field(default_factory=list)
    _wrapped: list[tuple[torch.Tensor, type, list[str], list[Any]]] = field(default_factory=list)
    _modules: list[tuple[nn.Module, type]] = field(default_factory=list)

    def see_module(self, module: nn.Module) -> None:
        self._modules.append((module, type(module)))
        self.see(vars(module))

    def see(self, container: Any) -> None:
        if not container:
            self._empty.append(container)
        elif isinstance(container, dict):
            self._dicts.append((container, tuple(container), tuple(container.values())))
        elif isinstance(container, list | set):
            self._sequences.append((container, tuple(container)))

    def see_tensor(self, tensor: torch.Tensor) -> None:
        self._tensors.append((tensor, (type(tensor), *layout(tensor))))

    def see_wrapped(self, tensor: torch.Tensor, names: list[str]) -> None:
        """What lies inside, as asking a wrapper for its own layout is slow."""
        inner = [getattr(tensor, name) for name in names]
        self._wrapped.append((tensor, type(tensor), names, inner))

    @property
    def holds(self) -> bool:
        """By identity: an equal value in another object is looked at anew."""
        return (
            not any(self._empty)
            and all(
                len(table) == len(values)
                and all(map(is_, table.values(), values))
                and tuple(table) == keys
                for table, keys, values in self._dicts
            )
            and all(
                len(items) == len(before) and all(map(is_, items, before))
                for items, before in self._sequences
            )
            and all(type(module) is kind for module, kind in self._modules)
            and all((type(item), *layout(item)) == before for item, before in self._tensors)
            and all(
                type(item) is kind and all(map(is_, (getattr(item, n) for n in names), inner))
                for item, kind, names, inner in self._wrapped
            )
        )


def describe_module(module: nn.Module, seen: CodeSeen) -> tuple[Described, Watch]:
    """The module with all that is inside; `seen` watches the code of its classes.

    Raises Undescribable, also where it has hooks: they are called around its forward, which is all
    that is compiled ahead.
    """
    if module._forward_hooks or module._forward_pre_hooks:
        raise Undescribable("a hook")
    describer = _Describer(seen)
    return describer.module(module), describer.watch


class _Describer:
    def __init__(self, code: CodeSeen) -> None:
        self.watch, self._code = Watch(), code
        self._seen: dict[int, tuple[int, Any]] = {}

    def module(self, module: nn.Module) -> Described:
        code = self._code.of_class(type(module))
        return self._name(module) or [_class_name(module), code, *self._attributes(module)]

    def _attributes(self, module: nn.Module) -> Iterator[Described]:
        self.watch.see_module(module)
        for name, value in vars(module).items():
            if name in TABLES:
                self.watch.see(value)
                yield [name, *([key, self._member(item)] for key, item in value.items())]
            elif name in HOOKS and not value:
                self.watch.see(value)
            elif name not in NOT_READ:
                yield [name, self.value(value)]

    def _member(self, item: Any) -> Described:
        return self.module(item) if isinstance(item, nn.Module) else self.value(item)

    def _name(self, item: Any) -> Described:
        """Where it was met before: two names of one tensor are one input of a graph."""
        if id(item) in self._seen:
            return ["again", self._seen[id(item)][0]]
        self._seen[id(item)] = (len(self._seen), item)
        return None

    def value(self, value: Any, depth: int = 0) -> Described:
        if depth > MOST_DEEP:
            raise Undescribable("values nested too deeply")
        if isinstance(value, PRIMITIVES) and type(value) in PRIMITIVES:
            return [type(value).__name__, repr(value)]
        if isinstance(value, torch.Tensor):
            return self._name(value) or self._tensor(value, depth)
        if isinstance(value, PLAIN_VALUES):
            return [type(value).__name__, str(value)]
        if isinstance(value, enum.Enum):
            return [_class_name(value), value.name]
        if isinstance(value, dict | list | tuple | set | frozenset):
            return [_class_name(value), *self._items(value, depth + 1)]
        return self._object(value, depth + 1)

    def _items(self, items: Any, depth: int) -> Iterator[Described]:
        if not isinstance(items, tuple | frozenset):
            self.watch.see(items)
        if isinstance(items, dict):
            items = [pair for pair in items.items() if pair[0] not in NOT_READ]
        found = [self.value(item, depth) for item in items]
        yield from sorted(found, key=repr) if isinstance(items, set | frozenset) else found

    def _tensor(self, tensor: torch.Tensor, depth: int) -> Described:
        found = [_class_name(tensor), *map(str, layout(tensor))]
        wrapper: Any = tensor
        if is_traceable_wrapper_subclass(wrapper):
            names, context = wrapper.__tensor_flatten__()
            self.watch.see_wrapped(tensor, list(names))
            inner = [self.value(getattr(wrapper, name), depth + 1) for name in names]
            return [*found, list(names), self.value(context, depth + 1), inner]
        if type(tensor) not in (torch.Tensor, nn.Parameter, nn.Buffer):
            raise Undescribable(f"a tensor of {_class_name(tensor)}")
        self.watch.see_tensor(tensor)
        return found

    def _object(self, value: Any, depth: int) -> Described:
        if isinstance(value, functools.partial):
            parts = (value.func, value.args, value.keywords)
            return ["partial", *(self.value(part, depth) for part in parts)]
        if isinstance(value, CustomOpDef):
            return ["operator", value._qualname]
        if inspect.isclass(value) or inspect.isroutine(value):
            return ["named", _function_name(value)]
        if id(value) in self._seen:
            return self._name(value)
        if isinstance(value, nn.Module) or not hasattr(value, "__dict__"):
            raise Undescribable(f"a {_class_name(value)}")
        code = self._code.of_class(type(value))
        return self._name(value) or [_class_name(value), code, *self._items(vars(value), depth)]


def _class_name(value: Any) -> str:
    """Raises Undescribable for a class that another process may know otherwise."""
    return _function_name(type(value))


def _function_name(value: Any) -> str:
    module, of_its_own = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    name = f"{module}.{of_its_own}"
    if (
        None in (module, of_its_own)
        or "<locals>" in name
        or "<lambda>" in name
        or name.startswith("__main__.")
    ):
        raise Undescribable(f"{name}, which has no name of its own")
    if getattr(value, "__self__", None) is not None and not inspect.isbuiltin(value):
        raise Undescribable(f"{name} bound to an object")
    return name


def layout(tensor: torch.Tensor) -> tuple[Any, ...]:
    return (tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device)
