"""One line for an argument of a wrong type, where the module shows the types of a whole call."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any, ParamSpec, TypeVar, cast

from annulus.errors import InvalidArgument

Args = ParamSpec("Args")
Result = TypeVar("Result")

SHOWN = 40  # characters of a value


def _is_pair(value: Any) -> bool:
    return (
        isinstance(value, (tuple, list))
        and len(value) == 2
        and isinstance(value[0], Integral)
        and (value[1] is None or isinstance(value[1], Integral))
    )


# What an annotation takes, by its text; arguments of any other kind are not looked at.
_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "int": (lambda value: isinstance(value, Integral), "an integer"),
    "float": (lambda value: isinstance(value, Real), "a number"),
    "str": (lambda value: isinstance(value, str), "a string"),
    "bool": (lambda value: isinstance(value, bool), "True or False"),
    "tuple[int, int]": (_is_pair, "a pair of integers"),
    "None": (lambda value: value is None, "None"),
}


def _shown(value: Any) -> str:
    if value is None or isinstance(value, (str, Integral, Real)):
        text = repr(value)
        return text if len(text) <= SHOWN else text[:SHOWN] + "..."
    return f"a {type(value).__name__}"


def wrong_argument(
    annotations: Mapping[str, Any], arguments: Mapping[str, Any], prefix: str = ""
) -> InvalidArgument | None:
    """The first argument that is not what its annotation says."""
    for name, value in arguments.items():
        kinds = [_KINDS.get(kind) for kind in str(annotations.get(name, "Any")).split(" | ")]
        known = [kind for kind in kinds if kind is not None]
        if len(known) < len(kinds) or any(takes(value) for takes, _ in known):
            continue
        expected = " or ".join(text for _, text in known)
        return InvalidArgument(f"{prefix}{name}: {_shown(value)}; expected {expected}")
    return None


def _beyond(value: Any) -> int:
    """How far an integer, or one of a pair, is from those that fit every type of the module's."""
    parts = value if isinstance(value, (tuple, list)) else (value,)
    integers = [int(one) for one in parts if isinstance(one, Integral)]
    return max((max(-one, one - (1 << 31) + 1, 0) for one in integers), default=0)


def _error_of(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], error: TypeError
) -> Exception:
    try:
        arguments = inspect.signature(function).bind(*args, **kwargs).arguments
    except TypeError:
        return error  # Python's own, of the call as it was written
    wrong = wrong_argument(function.__annotations__, arguments)
    if wrong is not None or "incompatible function arguments" not in str(error):
        return wrong or error
    far = {name: _beyond(value) for name, value in arguments.items()}
    name = max(far, key=lambda one: far[one])
    if far[name] == 0:
        return error
    return InvalidArgument(f"{name}: {_shown(arguments[name])}; expected integers in their range")


def checked(function: Callable[Args, Result]) -> Callable[Args, Result]:
    """The function, with an InvalidArgument that names a wrong argument for its TypeError."""
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def call_async(*args: Args.args, **kwargs: Args.kwargs) -> Any:
            try:
                return await function(*args, **kwargs)
            except TypeError as error:
                raise _error_of(function, args, kwargs, error) from None

        return cast(Callable[Args, Result], call_async)

    @functools.wraps(function)
    def call(*args: Args.args, **kwargs: Args.kwargs) -> Result:
        try:
            return function(*args, **kwargs)
        except TypeError as error:
            raise _error_of(function, args, kwargs, error) from None

    return call
