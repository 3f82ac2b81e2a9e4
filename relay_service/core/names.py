"""What a method name may look like (pure).

A name arrives from callers twice: in the path of a call and inside a request that asks the relay
to forward. Both are compared with the same rule, so that what one of them lets in the other can
always send on.
"""

from __future__ import annotations

import re

__all__ = ["MAX_METHOD_NAME_BYTES", "is_method_name"]

MAX_METHOD_NAME_BYTES = 1024
"""Longest method name (without the leading slash) that is carried."""

_METHOD_NAME = re.compile(r"[!-.0-~]+/[!-.0-~]+")
"""Two non-empty parts of visible ASCII (0x21-0x7E), one slash between them."""


def is_method_name(name: str) -> bool:
    """Whether `name` is `package.Service/Method`: two non-empty parts, visible ASCII, <= 1 KiB."""
    return len(name) <= MAX_METHOD_NAME_BYTES and _METHOD_NAME.fullmatch(name) is not None
