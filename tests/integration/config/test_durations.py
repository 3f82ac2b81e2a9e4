import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay_service.config.durations import SECONDS_MAX, format_duration, parse_duration


@given(st.integers(min_value=0, max_value=10**15))
def test_a_duration_of_whole_nanoseconds_survives_writing_and_reading(nanoseconds: int) -> None:
    seconds = nanoseconds / 1e9
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, abs=1e-9)


@given(st.floats(min_value=0, max_value=SECONDS_MAX))
def test_any_time_can_be_written_and_is_read_back_to_the_nanosecond(seconds: float) -> None:
    text = format_duration(seconds)
    assert text.endswith("s")
    assert parse_duration(text) == pytest.approx(seconds, rel=1e-15, abs=1e-9)


@given(st.text(max_size=20))
def test_no_text_makes_the_parser_raise_anything_but_value_error(text: str) -> None:
    try:
        seconds = parse_duration(text)
    except ValueError:
        return
    assert 0 <= seconds <= SECONDS_MAX


@pytest.mark.parametrize(
    ("text", "seconds"), [("0.1s", 0.1), ("15s", 15.0), ("0s", 0.0), ("1.000000001s", 1.000000001)]
)
def test_protobuf_durations_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "s",
        "1",
        "1 s",
        "-1s",
        "1.s",
        ".5s",
        "1e3s",
        "1.0000000001s",
        "infs",
        "nans",
        "\uff11s",
        "1m",
        "999999999999s",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        parse_duration(text)


def test_milliseconds_are_refused_with_what_was_meant() -> None:
    with pytest.raises(ValueError, match=r'write "0.25s"'):
        parse_duration("250ms")
