"""Blocks compiled ahead of time, tracing included: a fresh process neither traces nor guards them.

Torch's own guards cannot be kept in a file where weights are quantized (torch 2.13), and its
caching of them drops most. So code is taken by a key of all that it was made of (`call_keys`,
`descriptions`), which is held to at every call; what has another key is compiled as always.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_flatten

from registry.digest import canonical_json
from registry.plan import Compilation
from tuner.compiled_code import CodePart
from tuner.pipeline.block_function import Example, compiled_code, unpickled
from tuner.pipeline.call_keys import CallKey, attention_code, call_key
from tuner.pipeline.descriptions import Undescribable, Watch, describe_module
from tuner.pipeline.replaced import CodeSeen

logger = logging.getLogger("tuner")

MOST_FUNCTIONS = 16
"""Of one process: where inputs or blocks hold numbers of their own, each has a key of its own."""
MOST_DESCRIPTIONS = 8
"""Of one block, one after another, without a function for any: describing it takes a millisecond,
which is nothing once and too much each call."""
MOST_KEYS = 64
"""Of one block, and of all that a process met: calls that differ beyond these are not looked up."""
KEEPS_TENSORS = frozenset({"resident", "model_offload", "release_after_use"})
"""Placements under which a block has the same tensors at each call, and no hook of its own."""
CAPTURES_GRAPHS = ("reduce-overhead", "max-autotune")

Progress = Callable[[int, int], None]
"""Called with (done, total)."""


def _nobody(done: int, total: int) -> None:
    """A Progress that tells nobody."""


@dataclass
class Ahead:
    """Of one process: what it was given, and what it used and met.

    `functions` are by key, pickles whose signature was verified. With `is_recording` the calls are
    noted that `compile_ahead` is to make code for.
    """

    functions: Mapping[str, bytes] = field(default_factory=dict)
    is_recording: bool = False
    failure: str | None = None
    hits: set[str] = field(default_factory=set)
    misses: set[str] = field(default_factory=set)
    called: set[str] = field(default_factory=set)
    first_calls_s: float | None = None
    code: CodeSeen = field(default_factory=CodeSeen)
    _lines: set[str] = field(default_factory=set)
    _loaded: dict[str, Callable[..., Any]] = field(default_factory=dict)
    _examples: dict[str, Example] = field(default_factory=dict)
    _recorded: list[tuple[nn.Module, Callable[..., Any]]] = field(default_factory=list)

    @property
    def is_offered(self) -> bool:
        return bool(self.functions) and self.failure is None

    def attach(self, module: nn.Module, plan: Compilation) -> None:
        """Have the compiled blocks in `module` look here first. A whole component stays as it is,
        since torch 2.13 cannot pickle a forward that diffusers decorates; so do plans with shapes
        that are not fixed, and modes that capture CUDA graphs of their own."""
        is_suited = (
            plan.scope == "regional" and not plan.dynamic and plan.mode not in CAPTURES_GRAPHS
        )
        if not is_suited or not (self.is_recording or self.functions):
            return
        for part in module.modules():
            compiled = part._compiled_call_impl
            if compiled is not None:
                part._compiled_call_impl = AheadCall(self, part, compiled, _options(plan))
                self._recorded += [(part, compiled)] if self.is_recording else []

    def stop_recording(self) -> None:
        """The calls met so far are all: those that are timed pass no more through here."""
        for part, compiled in self._recorded:
            part._compiled_call_impl = compiled
        self._recorded.clear()

    def note(self, key: str, example: Example) -> None:
        if self.is_recording and len(self._examples) <= MOST_FUNCTIONS:
            self._examples.setdefault(key, example)

    def function(self, key: str) -> Callable[..., Any] | None:
        """The code of this key, None if there is none. Raises what torch raises where it does not
        take it."""
        if not self.is_offered:
            return None
        if key not in self.functions:
            self.miss(key, "its inputs, layers or settings are others")
            return None
        if key not in self._loaded:
            self._loaded[key] = unpickled(self.functions[key])
        return self._loaded[key]

    def has_room(self, key: str) -> bool:
        """Whether this key may be kept: what there is a function for always may."""
        return key in self.functions or key in self.called or len(self.called) < MOST_KEYS

    def tell(self, line: str) -> None:
        """Each line once, whatever blocks there are."""
        if line not in self._lines:
            self._lines.add(line)
            logger.warning(line)

    def took(self, duration_s: float) -> None:
        """The first call of a kind did, until it returned to Python."""
        self.first_calls_s = (self.first_calls_s or 0.0) + duration_s

    def miss(self, key: str, why: str) -> None:
        """Told once. `key` is the reason itself where no key could be made."""
        if not self.misses:
            logger.warning("a call has no code compiled ahead of time: %s", why)
        self.misses.add(key)

    def give_up(self, error: Exception) -> None:
        """For good: what failed once is not tried in the next block."""
        self.failure = _told(error)
        logger.warning("code compiled ahead of time is not used: %s", self.failure)

    def compile_ahead(self, report: Progress = _nobody) -> tuple[CodePart, ...]:
        """Code for every call that was met, none where torch cannot for one of them: then its
        compile cache is what there is."""
        if len(self._examples) > MOST_FUNCTIONS:
            logger.warning("nothing is compiled ahead of time: too many calls differ")
            return ()
        parts = []
        for done, (key, example) in enumerate(self._examples.items()):
            report(done, len(self._examples))
            try:
                data = compiled_code(example)
            except Exception as error:  # noqa: BLE001 (torch's errors here have no class in common)
                logger.warning("nothing is compiled ahead of time: %s", _told(error))
                return ()
            parts.append(CodePart("function", f"function/{key}", data))
        return tuple(parts)


def _told(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


@dataclass(frozen=True)
class _Known:
    """A block as it was described, and the keys of its calls while `watch` holds."""

    described: bytes
    watch: Watch
    keys: dict[CallKey, str]


class AheadCall:
    """In place of a module's compiled call: code from `ahead` where there is some for this very
    module and these inputs, else `compiled`."""

    def __init__(
        self,
        ahead: Ahead,
        module: nn.Module,
        compiled: Callable[..., Any],
        options: Mapping[str, Any],
    ) -> None:
        self._ahead, self._module, self._compiled = ahead, module, compiled
        self._options = options
        self._known: _Known | None = None
        self._fruitless = 0
        self._is_left = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the module's own call."""
        if self._ahead.failure is None and (name := self._ahead.code.replaced()) is not None:
            self._ahead.give_up(RuntimeError(f"{name} was replaced"))
        if self._fruitless > MOST_DESCRIPTIONS and not self._is_left:
            self._leave("it changes too often")
        if self._ahead.failure is not None or self._is_left:
            return self._compiled(*args, **kwargs)
        try:
            key = self._key(args, kwargs)
        except Undescribable as error:
            self._ahead.miss(str(error), f"{error} is no part of a key")
            return self._compiled(*args, **kwargs)
        if key is None:
            return self._compiled(*args, **kwargs)
        if key in self._ahead.called:
            return self._run(key, args, kwargs)
        self._ahead.called.add(key)
        start = time.perf_counter()
        found = self._run(key, args, kwargs)
        self._ahead.took(time.perf_counter() - start)
        return found

    def _run(self, key: str, args: Any, kwargs: Any) -> Any:
        try:
            function = self._ahead.function(key)
            if function is not None:
                found = function(self._module, *args, **kwargs)
                self._ahead.hits.add(key)
                self._fruitless = 0
                return found
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001 (torch's errors here have no class in common)
            self._ahead.give_up(error)
        return self._compiled(*args, **kwargs)

    def _key(self, args: Any, kwargs: Any) -> str | None:
        """None beyond what is kept: then each call has numbers of its own. Another thread may
        describe the block meanwhile; what was read here stays together."""
        leaves, structure = tree_flatten((args, kwargs))
        call = call_key(structure, leaves)
        known = self._known
        if known is None or not known.watch.holds:
            known = self._describe()
        if call not in known.keys:
            key = _digest(known.described, call)
            if len(known.keys) >= MOST_KEYS or not self._ahead.has_room(key):
                self._ahead.tell("a call is not looked up: too many differ")
                return None
            known.keys[call] = key
            self._ahead.note(key, Example(self._module, call, self._options))
        return known.keys[call]

    def _describe(self) -> _Known:
        """Raises Undescribable: for good, as an adapter or a hook seldom goes again."""
        self._known = None
        self._fruitless += 1
        try:
            described, watch = describe_module(self._module, self._ahead.code)
        except Undescribable as error:
            self._leave(f"it holds {error}")
            raise
        code = attention_code(self._ahead.code)
        said = canonical_json([described, code, dict(self._options)])
        self._known = known = _Known(said, watch, {})
        return known

    def _leave(self, why: str) -> None:
        self._is_left = True
        kind = type(self._module).__name__
        self._ahead.tell(f"a {kind} is compiled as always from now on: {why}")


def _digest(described: bytes, call: CallKey) -> str:
    return hashlib.sha256(described + canonical_json(call.described)).hexdigest()


def _options(plan: Compilation) -> dict[str, Any]:
    """Inductor's, as a mode or the plan itself names them."""
    from torch._inductor import list_mode_options

    return {**list_mode_options(plan.mode), **plan.inductor_options}
