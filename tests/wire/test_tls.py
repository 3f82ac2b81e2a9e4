"""TLS on both sides: HTTP/2 is agreed on by ALPN, or there is no connection."""

import asyncio
import random
import shutil
import ssl
import subprocess

import grpc
import grpc.aio
import pytest

from relay_service.core.evidence import Delivery
from relay_service.core.status import Code
from relay_service.timers import TimerWheel
from relay_service.upstream import Upstream
from relay_service.wire.listener import Listener
from relay_service.wire.sockets import offer_h2

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    key, cert = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        [
            *(
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-days",
                "2",
                "-subj",
                "/CN=localhost",
            ),
            *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)),
        ],
        check=True,
        capture_output=True,
    )
    return key, cert


@pytest.fixture
def server_tls(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate[1], certificate[0])
    return context


@pytest.fixture
def client_tls(certificate):
    return ssl.create_default_context(cafile=str(certificate[1]))


def abort(head, reply):
    reply.send_trailers(Code.ABORTED, head.method, ())


@pytest.fixture
async def listener(cleanup):
    timers = TimerWheel(asyncio.get_running_loop())
    made = Listener(abort, timers)

    async def close():
        await made.close(1.0)
        timers.close()

    cleanup(close)
    return made


async def test_a_real_client_calls_over_tls(listener, server_tls, certificate):
    address = await listener.start("127.0.0.1", 0, offer_h2(server_tls))
    credentials = grpc.ssl_channel_credentials(certificate[1].read_bytes())
    async with grpc.aio.secure_channel(address, credentials) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/a.B/C")(b"", timeout=5)
    assert caught.value.code() is grpc.StatusCode.ABORTED


async def test_both_sides_speak_tls_to_each_other(listener, server_tls, client_tls, new_sink, cleanup):
    address = await listener.start("127.0.0.1", 0, offer_h2(server_tls))
    timers = TimerWheel(asyncio.get_running_loop())
    up = Upstream("u", address, timers, rng=random.Random(1), tls=offer_h2(client_tls))
    up.open()
    sink = new_sink()
    up.start("a.B/C", (), None, sink).send_data(b"", end=True)
    end = await sink.end()
    assert (end.delivery, end.code, end.message) == (Delivery.ANSWERED, Code.ABORTED, "a.B/C")
    await up.close(1.0)
    timers.close()


async def test_a_peer_without_alpn_h2_is_no_connection(listener, server_tls, client_tls, new_sink):
    address = await listener.start("127.0.0.1", 0, server_tls)
    timers = TimerWheel(asyncio.get_running_loop())
    up = Upstream("u", address, timers, rng=random.Random(1), tls=offer_h2(client_tls))
    up.open()
    sink = new_sink()
    up.start("a.B/C", (), None, sink)
    end = await sink.end()
    assert end.delivery is Delivery.NOT_SENT
    assert "ALPN" in end.message
    await up.close(0.0)
    timers.close()


async def test_an_untrusted_certificate_is_no_connection(listener, server_tls, new_sink):
    address = await listener.start("127.0.0.1", 0, offer_h2(server_tls))
    timers = TimerWheel(asyncio.get_running_loop())
    up = Upstream("u", address, timers, rng=random.Random(1), tls=offer_h2(ssl.create_default_context()))
    up.open()
    sink = new_sink()
    up.start("a.B/C", (), None, sink)
    end = await sink.end()
    assert end.delivery is Delivery.NOT_SENT
    assert "certificate" in end.message
    await up.close(0.0)
    timers.close()
