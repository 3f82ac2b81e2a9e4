"""Timeouts, messages and framing: pure codecs."""

import random
import urllib.parse

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from relay_service.core.reason import Reason
from relay_service.message import Collector, frame
from relay_service.wire.codec import (
    MESSAGE_BYTES_MAX,
    decode_message,
    decode_timeout,
    encode_message,
    encode_timeout,
)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"1n", 1e-9),
        (b"250u", 250e-6),
        (b"100m", 0.1),
        (b"5S", 5.0),
        (b"2M", 120.0),
        (b"99999999H", 99_999_999 * 3600.0),
        (b"0S", 0.0),
        (b"00000001S", 1.0),
    ],
)
def test_timeouts_are_read_in_every_unit(value, seconds):
    assert decode_timeout(value) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"S",
        b"1",
        b"1s",
        b"-1S",
        b"+1S",
        b"1.5S",
        b" 1S",
        b"1 S",
        b"123456789S",
        b"1SS",
        "\u0661S".encode(),
    ],
)
def test_malformed_timeouts_are_refused(value):
    with pytest.raises(ValueError, match="malformed grpc-timeout"):
        decode_timeout(value)


@given(st.floats(min_value=1e-6, max_value=3e11))
def test_an_encoded_timeout_is_never_shorter_and_hardly_longer(timeout_s):
    value = encode_timeout(timeout_s)
    assert len(value) <= 9
    back = decode_timeout(value)
    assert timeout_s <= back * (1 + 1e-9)
    assert back <= timeout_s * 1.0001 + 1e-6


@given(st.floats(max_value=0, allow_nan=False))
def test_a_deadline_already_past_is_the_shortest_timeout(timeout_s):
    assert decode_timeout(encode_timeout(timeout_s)) == pytest.approx(1e-9)


@example(" leading and trailing ")
@example(" ")
@given(st.text())
def test_any_message_survives_and_is_a_legal_field_value(text):
    value = encode_message(text)
    assert all(0x20 <= byte <= 0x7E for byte in value)
    assert not value.startswith(b" ")
    assert not value.endswith(b" ")
    assert decode_message(value) == text.encode("utf-8", "replace").decode()


@given(st.text())
def test_messages_are_readable_by_any_percent_decoder(text):
    expected = text.encode("utf-8", "replace").decode()
    assert urllib.parse.unquote(encode_message(text).decode("ascii")) == expected


@given(st.binary())
def test_decoding_a_message_never_fails(value):
    decode_message(value)


@pytest.mark.parametrize("text", ["e" * 5_000, "é" * 5_000, "x" + "é" * 5_000, "e" * 4_095 + " " * 10])
def test_a_long_message_is_cut_between_characters(text):
    value = encode_message(text)
    assert len(value) <= 3 * MESSAGE_BYTES_MAX
    cut = decode_message(value)
    assert text.startswith(cut)
    assert MESSAGE_BYTES_MAX - 1 <= len(cut.encode()) <= MESSAGE_BYTES_MAX
    assert not value.endswith(b" ")


def test_broken_escapes_stay_as_they_stand():
    assert decode_message(b"50% off %zz %41") == "50% off %zz A"


@given(st.binary(max_size=500), st.booleans(), st.randoms(use_true_random=False))
def test_a_message_is_collected_however_the_data_is_cut(payload, compressed, rng: random.Random):
    framed = bytes([compressed]) + frame(payload)[1:]
    collector = Collector(500)
    rest = framed
    while rest:
        assert collector.whole() is None
        cut = rng.randint(1, len(rest))
        assert collector.add(rest[:cut]) is None
        rest = rest[cut:]
    assert collector.whole() == framed
    assert collector.size_bytes == len(framed)
    assert collector.add(b"x") is Reason.MALFORMED_REQUEST


def test_a_message_beyond_the_limit_is_refused_at_its_prefix():
    collector = Collector(10)
    assert collector.add(frame(b"x" * 11)[:4]) is None
    assert collector.add(frame(b"x" * 11)[4:5]) is Reason.MESSAGE_TOO_LARGE
    assert Collector(10).add(frame(b"0123456789")) is None


def test_a_flag_that_grpc_does_not_know_is_refused():
    assert Collector(10).add(b"\x02\x00\x00\x00\x00") is Reason.MALFORMED_REQUEST
