"""Typed msgpack: a frozen dataclass as a map, each field with a bound.

A struct is a msgpack map: `t` is its `TYPE`, the other keys are its fields. Unknown keys are
ignored, everything else that is not as annotated is an error that names the field.

The annotations are the codec: `Annotated[type, limit]`, where the limit is the largest value of an
int, the largest length of bytes, str or list. Ints are never negative.
"""

from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any, ClassVar, Generic, TypeVar, get_args, get_origin, get_type_hints

import msgpack

from p2p.errors import LocalProtocolError, RemoteProtocolError


@dataclass(frozen=True, slots=True)
class Struct:
    """Base of what a `Codec` takes."""

    TYPE: ClassVar[str]


S = TypeVar("S", bound=Struct)
Check = Callable[[object], object]


def _check(hint: Any) -> Check:
    """A function that returns a value of `hint`, or raises ValueError saying what is wrong."""
    limit: int | None = None
    if get_origin(hint) is Annotated:
        hint, limit = get_args(hint)[:2]
    if get_origin(hint) is list:
        return _list_check(_check(get_args(hint)[0]), limit or 0)
    if hint is bool:
        return _typed(bool)
    if hint is int:
        return _bounded_int(limit or 0)
    if hint is float:
        return _bounded_float(limit or 0)
    return _bounded_length(hint, limit or 0)


def _typed(kind: type) -> Check:
    def check(value: object) -> object:
        if not isinstance(value, kind):
            raise ValueError(f"is {type(value).__name__}, not {kind.__name__}")
        return value

    return check


def _bounded_int(limit: int) -> Check:
    def check(value: object) -> object:
        if type(value) is not int or not 0 <= value <= limit:
            raise ValueError(f"is not a whole number from 0 to {limit}")
        return value

    return check


def _bounded_float(limit: int) -> Check:
    def check(value: object) -> object:
        if type(value) not in (int, float) or not 0 <= value <= limit:  # type: ignore[operator]
            raise ValueError(f"is not a number from 0 to {limit}")
        return float(value)  # type: ignore[arg-type]

    return check


def _bounded_length(kind: type, limit: int) -> Check:
    def check(value: object) -> object:
        if not isinstance(value, kind) or len(value) > limit:  # type: ignore[arg-type]
            raise ValueError(f"is not {kind.__name__} of at most {limit}")
        return value

    return check


def _list_check(item: Check, limit: int) -> Check:
    def check(value: object) -> object:
        if not isinstance(value, list | tuple) or len(value) > limit:
            raise ValueError(f"is not a list of at most {limit}")
        return [item(element) for element in value]

    return check


class Codec(Generic[S]):
    """Encodes and decodes the direct subclasses that `base` has by now.

    Attributes:
      types: the classes by their `TYPE`.
    """

    def __init__(self, base: type[S]) -> None:
        # `slots=True` makes a second class of each; the later one, by its TYPE, is the real one
        self.types: dict[str, type[S]] = {kind.TYPE: kind for kind in base.__subclasses__()}
        self._checks: dict[type[S], dict[str, Check]] = {}
        self._required: dict[type[S], frozenset[str]] = {}
        for kind in self.types.values():
            hints = get_type_hints(kind, include_extras=True)
            self._checks[kind] = {one.name: _check(hints[one.name]) for one in fields(kind)}
            self._required[kind] = frozenset(
                one.name
                for one in fields(kind)
                if one.default is MISSING and one.default_factory is MISSING
            )

    def encode(self, item: S) -> bytes:
        """The msgpack of a struct.

        Raises:
          LocalProtocolError: a field of ours is out of bounds: a bug here.
        """
        tree: dict[str, object] = {"t": item.TYPE}
        for name, check in self._checks[type(item)].items():
            try:
                tree[name] = check(getattr(item, name))
            except ValueError as error:
                raise LocalProtocolError(f"{item.TYPE}.{name} {error}") from error
        encoded: bytes = msgpack.packb(tree)
        return encoded

    def decode(self, data: bytes | bytearray | memoryview) -> S:
        """The struct in one frame.

        Raises:
          RemoteProtocolError: garbage, an unknown type, or a field missing or out of bounds.
        """
        try:
            tree: Any = msgpack.unpackb(data, strict_map_key=True)
        except Exception as error:  # msgpack raises many types on garbage
            raise RemoteProtocolError(f"a frame is not msgpack: {type(error).__name__}") from error
        name = tree.get("t") if isinstance(tree, dict) else None
        kind = self.types.get(name) if isinstance(name, str) else None
        if kind is None:
            raise RemoteProtocolError(f"a frame is of unknown type {name!r:.40}")
        checks = self._checks[kind]
        if missing := sorted(self._required[kind] - tree.keys()):
            raise RemoteProtocolError(f"{kind.TYPE} lacks {missing[0]}")
        values = {}
        for key, value in tree.items():
            if key in checks:
                try:
                    values[key] = checks[key](value)
                except ValueError as error:
                    raise RemoteProtocolError(f"{kind.TYPE}.{key} {error}") from error
        return kind(**values)
