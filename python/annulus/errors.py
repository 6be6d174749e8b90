"""Errors of the library: an exception for each code, which says what to do.

``Unavailable`` try again; ``ResourceExhausted`` back off, by ``retry_after`` seconds if it says;
``DataLoss`` the KV is gone, upload it again; ``InvalidArgument`` never try again.
"""

from __future__ import annotations

import re

_FIELD = re.compile(r"^(?:(?:shape|number|tokens) of )?(?:--)?([A-Za-z_](?:[\w.-]|\[[^\]]*\])*): ")
_SINK = re.compile(r"\bsink of head \d+:")


class AnnulusError(RuntimeError):
    """Base of all errors of the library.

    Attributes:
        code: as gRPC names it, e.g. ``"NOT_FOUND"``.
        field: the argument at fault, where the message names one; else None.
        retry_after: seconds after which the service asks to be tried again; None if it did not.
    """

    code = "UNKNOWN"

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        named = _FIELD.match(_SINK.sub("sinks:", message, count=1))
        self.field = named.group(1) if named else None


class InvalidArgument(AnnulusError, ValueError):
    """An argument that can never work; the message names it and what was expected."""

    code = "INVALID_ARGUMENT"


def of_wrong_kind(field: str, value: object, expected: str) -> InvalidArgument:
    """Of an argument whose value would say less than its type."""
    return InvalidArgument(f"{field}: a {type(value).__name__}; expected {expected}")


class NotFound(AnnulusError, LookupError):
    """No such context, or not of this caller; the message says if its lease ended."""

    code = "NOT_FOUND"


class Unavailable(AnnulusError, ConnectionError):
    """The service, or a worker that holds the context, is not there now."""

    code = "UNAVAILABLE"


class DeadlineExceeded(AnnulusError, TimeoutError):
    """``timeout`` passed first."""

    code = "DEADLINE_EXCEEDED"


class ResourceExhausted(AnnulusError):
    """A bound of the service, or a quota, is met; the message names it."""

    code = "RESOURCE_EXHAUSTED"


class DataLoss(AnnulusError):
    """The context lost KV: upload it again."""

    code = "DATA_LOSS"


class Aborted(AnnulusError):
    """Another call changed the layer meanwhile: look at its tokens, then try again."""

    code = "ABORTED"


class Cancelled(AnnulusError):
    """The call was cancelled."""

    code = "CANCELLED"


class Unauthenticated(AnnulusError, PermissionError):
    """The service does not know the caller."""

    code = "UNAUTHENTICATED"


class PermissionDenied(AnnulusError, PermissionError):
    """The caller's role may not make this call."""

    code = "PERMISSION_DENIED"


class FailedPrecondition(AnnulusError):
    """Not in this state: another version of the protocol, or a client that is closed."""

    code = "FAILED_PRECONDITION"


class Internal(AnnulusError):
    """A fault of the library or the service."""

    code = "INTERNAL"


_BY_CODE = {
    kind.code: kind
    for kind in (
        InvalidArgument,
        NotFound,
        Unavailable,
        DeadlineExceeded,
        ResourceExhausted,
        DataLoss,
        Aborted,
        Cancelled,
        Unauthenticated,
        PermissionDenied,
        FailedPrecondition,
        Internal,
    )
}


def error_of(code: str, message: str, retry_after: float | None) -> AnnulusError:
    """The exception of a status; codes without a class of their own keep their name."""
    error = _BY_CODE.get(code, AnnulusError)(message, retry_after=retry_after)
    error.code = code
    return error
