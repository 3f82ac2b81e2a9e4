"""Durations as protobuf writes them in JSON: decimal seconds with an ``s``, such as ``"0.1s"``.

Source: https://protobuf.dev/reference/protobuf/google.protobuf/#duration (range and digits included).
"""

import re
from decimal import Decimal

SECONDS_MAX = 315_576_000_000
"""Protobuf's own bound, about 10,000 years."""

_DURATION = re.compile(r"(\d{1,12}(?:\.\d{1,9})?)s", re.ASCII)


def parse_duration(text: str) -> float:
    """Seconds of a duration that is not negative.

    Raises `ValueError` saying what is allowed.
    """
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f'must be a duration in seconds such as "0.1s" or "15s"{_hint(text)}')
    seconds = Decimal(match[1])
    if seconds > SECONDS_MAX:
        raise ValueError(f"must be at most {SECONDS_MAX}s")
    return float(seconds)


def format_duration(seconds: float) -> str:
    """The shortest protobuf JSON of ``seconds`` to the nanosecond; `parse_duration` reads it back."""
    if not 0 <= seconds <= SECONDS_MAX:
        raise ValueError(f"{seconds} is not a duration from 0 to {SECONDS_MAX} seconds")
    digits = f"{Decimal(repr(float(seconds))):.9f}"
    return digits.rstrip("0").rstrip(".") + "s"


def _hint(text: str) -> str:
    """People write milliseconds; say what they meant."""
    if match := re.fullmatch(r"(\d{1,12})ms", text, re.ASCII):
        return f': write "{format_duration(int(match[1]) / 1000)}"'
    return ""
