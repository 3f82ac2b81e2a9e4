"""The client: its surface on every server, and what it says when things fail."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from chaos.toxiproxy.client import ProxySpec, ToxiproxyClient
from chaos.toxiproxy.embedded import EmbeddedToxiproxy
from chaos.toxiproxy.errors import (
    AlreadyExistsError,
    NotFoundError,
    RejectedError,
    RequestError,
    ServerFailedError,
    UnreachableError,
)


def test_a_proxy_can_be_made_found_listed_and_deleted(client: ToxiproxyClient) -> None:
    made = client.create("p", "127.0.0.1:0", "127.0.0.1:9")
    assert made.enabled
    assert not made.listen.endswith(":0")
    assert client.get("p").listen == made.listen
    assert list(client.proxies()) == ["p"]
    client.delete("p")
    assert client.proxies() == {}


def test_populate_returns_the_proxies(client: ToxiproxyClient) -> None:
    specs = [ProxySpec(name, "127.0.0.1:0", "127.0.0.1:9") for name in ("a", "b")]
    assert [proxy.name for proxy in client.populate(specs)] == ["a", "b"]
    assert client.populate([]) == []


def test_a_proxy_follows_what_the_server_answers(client: ToxiproxyClient) -> None:
    proxy = client.create("p", "127.0.0.1:0", "127.0.0.1:9")
    proxy.disable()
    assert not proxy.enabled
    proxy.enable()
    proxy.move("127.0.0.1:10")
    assert (proxy.enabled, proxy.upstream) == (True, "127.0.0.1:10")
    client.get("p").disable()
    proxy.refresh()
    assert not proxy.enabled


def test_a_toxic_is_added_updated_and_removed(client: ToxiproxyClient) -> None:
    proxy = client.create("p", "127.0.0.1:0", "127.0.0.1:9")
    toxic = proxy.add_toxic("latency", stream="upstream", toxicity=0.5, latency=100, jitter=10)
    assert (toxic.name, toxic.toxicity) == ("latency_upstream", 0.5)
    updated = proxy.update_toxic(toxic.name, latency=200)
    assert updated.attributes == {"latency": 200, "jitter": 10}
    assert updated.toxicity == 0.5
    assert proxy.update_toxic(toxic.name, toxicity=1.0).toxicity == 1.0
    assert proxy.toxics() == [proxy.update_toxic(toxic.name)]
    proxy.remove_toxic(toxic.name)
    assert proxy.toxics() == []


def test_a_toxic_lasts_as_long_as_its_block_also_when_the_block_fails(client: ToxiproxyClient) -> None:
    proxy = client.create("p", "127.0.0.1:0", "127.0.0.1:9")

    def failing() -> None:
        with proxy.toxic("latency", latency=100) as toxic:
            assert proxy.toxics() == [toxic]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert proxy.toxics() == []


def test_a_toxic_that_is_gone_at_the_end_of_its_block_is_fine(client: ToxiproxyClient) -> None:
    proxy = client.create("p", "127.0.0.1:0", "127.0.0.1:9")
    with proxy.toxic("noop"):
        client.reset()
    assert proxy.toxics() == []


def test_names_are_escaped_in_paths(client: ToxiproxyClient) -> None:
    proxy = client.create("a b?c%", "127.0.0.1:0", "127.0.0.1:9")
    with proxy.toxic("noop", name="x y#z"):
        assert [toxic.name for toxic in client.get("a b?c%").toxics()] == ["x y#z"]


def test_every_refusal_has_a_type_a_status_and_the_servers_words(client: ToxiproxyClient) -> None:
    proxy = client.create("p", "127.0.0.1:0", "127.0.0.1:9")
    busy = client.url.removeprefix("http://")
    for attempt, error, status, words in (
        (lambda: client.get("nope"), NotFoundError, 404, "proxy not found"),
        (lambda: proxy.remove_toxic("nope"), NotFoundError, 404, "toxic not found"),
        (lambda: client.create("p", "127.0.0.1:0", "a:1"), AlreadyExistsError, 409, "proxy already exists"),
        (lambda: proxy.add_toxic("bogus"), RejectedError, 400, "invalid toxic type"),
        (lambda: client.create("q", busy, "a:1"), ServerFailedError, 500, "address already in use"),
    ):
        with pytest.raises(error, match=words) as raised:
            attempt()
        assert raised.value.status == status
        assert words in raised.value.message
        assert client.url in str(raised.value), "the message says where"
        assert isinstance(raised.value, RequestError)


def test_nobody_there_is_unreachable_and_says_what_to_do() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))  # bound and not listening: nobody else gets the port
        client = ToxiproxyClient(f"http://127.0.0.1:{probe.getsockname()[1]}")
        with pytest.raises(UnreachableError, match="is Toxiproxy running there") as raised:
            client.version()
    assert raised.value.status is None
    assert "refused" in raised.value.message


def test_a_server_that_never_answers_is_left_after_the_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = ToxiproxyClient(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.2)
        started_s = time.monotonic()
        for attempt in (
            client.version,
            client.proxies,
            client.reset,
            lambda: client.delete("p"),
            lambda: client.populate([]),
        ):
            with pytest.raises(UnreachableError, match=r"no answer within 0\.2 s"):
                attempt()
        assert time.monotonic() - started_s < 5


def test_what_is_not_http_or_not_json_is_unreachable() -> None:
    for answer in (b"SSH-2.0-OpenSSH\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", b""):
        with answering(answer) as url, pytest.raises(UnreachableError):
            ToxiproxyClient(url, timeout_s=2).version()


def test_a_patch_is_bounded_by_the_timeout_too(client: ToxiproxyClient) -> None:
    proxy = client.create("p", "127.0.0.1:0", "127.0.0.1:9")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        lost = ToxiproxyClient(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.2)
        proxy._transport = lost._transport
        with pytest.raises(UnreachableError):
            proxy.disable()


@pytest.mark.parametrize("url", ["", "ftp://host:1", "http://host:1/api", "http://"])
def test_what_is_no_address_is_said_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="not the address of a Toxiproxy"):
        ToxiproxyClient(url)


async def test_clients_of_different_servers_live_side_by_side() -> None:
    async with EmbeddedToxiproxy() as one, EmbeddedToxiproxy() as other:
        clients = [ToxiproxyClient(one.url), ToxiproxyClient(other.url)]

        def fill(n: int) -> None:
            clients[n % 2].create(f"p{n}", "127.0.0.1:0", "127.0.0.1:9")

        with ThreadPoolExecutor(8) as pool:
            loop = asyncio.get_running_loop()
            await asyncio.gather(*(loop.run_in_executor(pool, fill, n) for n in range(20)))
            found = [await loop.run_in_executor(pool, client.proxies) for client in clients]
        assert set(found[0]) == {f"p{n}" for n in range(0, 20, 2)}
        assert set(found[1]) == {f"p{n}" for n in range(1, 20, 2)}


def test_a_proxy_in_the_environment_is_not_used(
    client: ToxiproxyClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert client.version()


@contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """A server that answers one connection with these bytes and closes."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(5)

    def serve() -> None:
        sock, _ = listener.accept()
        with sock:
            sock.settimeout(5)
            sock.recv(65536)
            sock.sendall(answer)

    serving = threading.Thread(target=serve)
    serving.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        serving.join(5)
        listener.close()
