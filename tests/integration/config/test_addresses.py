import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay_service.config.addresses import TcpAddress, UnixAddress, parse_address, parse_target


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:50051", TcpAddress("127.0.0.1", 50051)),
        ("localhost:0", TcpAddress("localhost", 0)),
        ("[::1]:80", TcpAddress("::1", 80)),
        ("payments.internal:443", TcpAddress("payments.internal", 443)),
        ("unix:/run/relay.sock", UnixAddress("/run/relay.sock")),
        ("unix:///run/relay.sock", UnixAddress("/run/relay.sock")),
        ("unix:relay.sock", UnixAddress("relay.sock")),
    ],
)
def test_addresses_are_read_and_can_be_written_again(text: str, address: TcpAddress | UnixAddress) -> None:
    assert parse_address(text) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host",
        ":1",
        "host:",
        "host:x",
        "host:65536",
        "::1:80",
        "a b:1",
        "unix:",
        "http://h:1",
        "unix:" + "x" * 108,
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be host:port|at most"):
        parse_address(text)


def test_port_0_can_be_listened_on_but_not_connected_to() -> None:
    assert parse_address("127.0.0.1:0") == TcpAddress("127.0.0.1", 0)
    with pytest.raises(ValueError, match="from 1 to 65535"):
        parse_target("127.0.0.1:0")


@given(st.text(max_size=40))
def test_no_text_makes_the_parser_raise_anything_but_value_error(text: str) -> None:
    try:
        address = parse_address(text)
    except ValueError:
        return
    assert parse_address(str(address)) == address
