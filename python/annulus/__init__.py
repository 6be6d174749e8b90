"""Distributed long-context attention: KV held where there is room, attended where it lies.

>>> import annulus
>>> with annulus.in_process(workers=2) as client:
...     context = client.create_context(heads=8, kv_heads=4, head_dim=64)
...     context.append(0, k, v)  # [n, 4, 64], positions applied
...     out, lse = context.attend(0, q)  # [m, 8, 64], of the last m tokens
"""

from annulus._core import Answer
from annulus.client import Client, ContextOptions, connect, in_process
from annulus.context import Appended, Context
from annulus.errors import (
    Aborted,
    AnnulusError,
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)
from annulus.functions import Explanation, attention, blend, explain, gate, merge, with_sinks
from annulus.heads import HeadTable
from annulus.lists import Index, KeyList
from annulus.steps import Step

__version__ = "0.1.0"

__all__ = [
    "Aborted",
    "AnnulusError",
    "Answer",
    "Appended",
    "Cancelled",
    "Client",
    "Context",
    "ContextOptions",
    "DataLoss",
    "DeadlineExceeded",
    "Explanation",
    "FailedPrecondition",
    "HeadTable",
    "Index",
    "Internal",
    "InvalidArgument",
    "KeyList",
    "NotFound",
    "PermissionDenied",
    "ResourceExhausted",
    "Step",
    "Unauthenticated",
    "Unavailable",
    "attention",
    "blend",
    "connect",
    "explain",
    "gate",
    "in_process",
    "merge",
    "with_sinks",
]
