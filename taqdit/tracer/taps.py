"""Taps: read, or change, what enters the linears of a transformer while a forward is built.

A patched `__call__` of one instance never runs in Python, and a wrapper in a module's place would
change the paths of its parameters. So for the time of one forward each tapped module's class is a
subclass of its own whose `__call__` reads first. No module, array or path changes, and whatever
the forward assigns to a module (DiffusionKit's unified block does) stays assigned.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import repeat

from taqdit.backend import mx, nn
from taqdit.errors import ModelError

_MARK = "_taqdit_tap"  # an attribute that only the classes of tapped modules have
_LINEARS = (nn.Linear, nn.QuantizedLinear)

Read = Callable[[str, mx.array], None]
Call = Callable[[str, Callable[[mx.array], mx.array], mx.array], mx.array]
"""(name, the linear's own call, its input) -> what the forward takes for its output."""


class Taps:
    """Reads the inputs of the linears at `paths` (site name -> module path) of a transformer.

    `widths` (site name -> channels) are checked where given. Raises ModelError for a path that
    leads to no linear, to one of another input width, to one that another site has, or to one
    that is being read. The modules are looked up here: build taps anew where modules are replaced.
    """

    def __init__(
        self, mmdit: nn.Module, paths: Mapping[str, str], *, widths: Mapping[str, int] | None = None
    ) -> None:
        modules, widths = dict(mmdit.named_modules()), widths or {}
        self._modules = [
            _linear(modules.get(path), f"site {name} at {path}", widths.get(name))
            for name, path in paths.items()
        ]
        self._names = dict(zip(map(id, self._modules), paths, strict=True))
        if len(self._names) < len(paths):
            alone = set(self._names.values())
            twice = [name for name in paths if name not in alone]
            raise ModelError(f"another site has the module of {_few(twice)} already")
        self._refuse_tapped()
        self._classes: dict[type, type] = {}
        self._own: list[type] = []  # while reading: the modules' own classes
        self._call: Call = _own_call

    def reading(self, read: Read) -> AbstractContextManager[None]:
        """While it lasts, every call of a tapped module calls `read(site name, input)` first.

        The inputs are the very arrays (rows, tokens, 1, width) that the forward computes with,
        lazy, in its dtype; outputs are bit-identical. A module that is called twice is read twice.
        """

        def read_first(name: str, linear: Callable[[mx.array], mx.array], x: mx.array) -> mx.array:
            read(name, x)
            return linear(x)

        return self.around(read_first)

    @contextmanager
    def around(self, call: Call) -> Iterator[None]:
        """While it lasts, a call of a tapped module is `call(site name, its own call, input)`.

        Raises ModelError if a tapped module is being read already, and at the end if one was never
        called; afterwards, whatever happened, every module has its own class again.

        One gap is Python's: a Ctrl-C that arrives just as a `with` block ends keeps its exit from
        being run. The modules then wait until that exception is let go, or for `restore`.
        """
        self._refuse_tapped()
        called: set[str] = set()

        def note(name: str, linear: Callable[[mx.array], mx.array], x: mx.array) -> mx.array:
            called.add(name)
            return call(name, linear, x)

        self._own = list(map(type, self._modules))
        tapped = [self._subclass(own) for own in self._own]
        try:
            try:
                self._call = note
                _set_classes(self._modules, tapped)
                yield
            finally:
                self.restore()
        finally:  # again, for a Ctrl-C that came between the line above and what it does
            self.restore()
        if missing := [name for name in self._names.values() if name not in called]:
            raise ModelError(
                f"no activation was read at {_few(missing)}: the forward did not call these"
                " modules; were modules replaced since the taps were made?"
            )

    def restore(self) -> None:
        """Give every module its own class back, if a reading was cut off before it could.

        For a `finally` around the whole `with` of a reading; does nothing where all is well.
        """
        _set_classes(self._modules, self._own)
        self._own, self._call = [], _own_call

    def _refuse_tapped(self) -> None:
        busy = [n for m, n in zip(self._modules, self._names.values(), strict=True) if _tapped(m)]
        if busy:
            raise ModelError(f"activations are being read already at {_few(busy)}; finish that")

    def _subclass(self, own: type) -> type:
        """The class that modules of class `own` have while they are read; one for all of them."""
        if own not in self._classes:

            def call(module: nn.Module, x: mx.array) -> mx.array:
                itself = partial(own.__call__, module)  # type: ignore[operator]
                return self._call(self._names[id(module)], itself, x)

            self._classes[own] = type(f"Tapped{own.__name__}", (own,), {"__call__": call, _MARK: 1})
        return self._classes[own]


def _set_classes(modules: Sequence[nn.Module], classes: Sequence[type]) -> None:
    """Give each module a class. One call into C does all: no Ctrl-C comes in between."""
    deque(map(object.__setattr__, modules, repeat("__class__"), classes), maxlen=0)


def _own_call(_name: str, linear: Callable[[mx.array], mx.array], x: mx.array) -> mx.array:
    """Changes nothing."""
    return linear(x)


def _tapped(module: nn.Module) -> bool:
    return hasattr(type(module), _MARK)


def _linear(module: nn.Module | None, where: str, width: int | None) -> nn.Module:
    if module is None:
        raise ModelError(f"{where}: the transformer has no such module")
    if not isinstance(module, _LINEARS):
        raise ModelError(f"{where}: a {type(module).__name__}, where a linear is expected")
    if width is not None and width != _input_width(module):
        raise ModelError(f"{where}: {_input_width(module)} input channels, not {width}")
    return module


def _input_width(linear: nn.Module) -> int:
    """Channels of the input; the weight (out, in) of a quantized linear packs words of 32 bits."""
    packed = int(linear.weight.shape[1])
    return packed * 32 // linear.bits if isinstance(linear, nn.QuantizedLinear) else packed


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
