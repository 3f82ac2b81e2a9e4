"""A wall between the callbacks of one event: when one of them fails, the others still hear of it."""

import logging
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)


def guarded(callback: Callable[..., object], *arguments: Any) -> bool:
    """Call ``callback``; an exception is logged and goes no further. The result is whether it succeeded.

    For whoever has several to tell: a loss ends many streams, and one of them must not silence the rest.
    """
    try:
        callback(*arguments)
    except Exception:
        logger.exception("%r failed", callback)
        return False
    return True
