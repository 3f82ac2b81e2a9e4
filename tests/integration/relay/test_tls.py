"""TLS from settings and policy file: callers, upstreams, who a caller is, and certificates that change."""

import asyncio
import json
import shutil
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from typer.testing import CliRunner

from chaos.processes import ManagedProcess
from protos.downstream.v1 import payment_pb2, payment_pb2_grpc
from protos.relay.v1 import admin_pb2, admin_pb2_grpc
from relay_service.cli.app import app
from relay_service.tls import TlsError, listening

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make certificates")

ANY_PORTS = ("--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0", "--http-listen=127.0.0.1:0")
CHARGE = "downstream.v1.PaymentService/Charge"
TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Authority:
    """One that signs certificates, and the files it made."""

    folder: Path

    @property
    def file(self) -> Path:
        return self.folder / "ca.pem"

    def make(self) -> None:
        self._openssl(
            *("req", "-x509", *_NEW_KEY, "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=ca"),
            *("-addext", "keyUsage=critical,keyCertSign"),  # Python 3.13 asks for it
        )

    def sign(self, name: str, alternative: str) -> tuple[Path, Path]:
        """A certificate for ``alternative`` (such as ``DNS:localhost``) and its key."""
        (self.folder / f"{name}.ext").write_text(f"subjectAltName={alternative}\n")
        self._openssl("req", *_NEW_KEY, f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        self._openssl(
            *("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"),
            *("-days", "2", "-out", f"{name}.pem", "-extfile", f"{name}.ext"),
        )
        return self.folder / f"{name}.pem", self.folder / f"{name}.key"

    def credentials(self, name: str | None) -> grpc.ChannelCredentials:
        """What a client called ``name`` presents; nothing when it is None."""
        read = lambda file: (self.folder / file).read_bytes()  # noqa: E731 (three short reads)
        if name is None:
            return grpc.ssl_channel_credentials(self.file.read_bytes())
        return grpc.ssl_channel_credentials(self.file.read_bytes(), read(f"{name}.key"), read(f"{name}.pem"))

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.folder, check=True, capture_output=True)


_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    made = Authority(tmp_path_factory.mktemp("authority"))
    made.make()
    made.sign("relay", "DNS:localhost,IP:127.0.0.1")
    made.sign("alice", "URI:spiffe://shop/alice")
    made.sign("bob", "DNS:bob.example")
    return made


@pytest_asyncio.fixture
async def start(tmp_path: Path) -> AsyncIterator[Callable[..., object]]:
    """Start a process of the project by its module; its ready line."""
    started: list[ManagedProcess] = []

    async def run(module: str, *flags: str) -> dict[str, str]:
        name = f"{module}-{len(started)}"
        process = ManagedProcess(name, tmp_path / f"{name}.log")
        started.append(process)
        return await process.start([sys.executable, "-m", module, "serve", *flags])

    yield run
    for process in reversed(started):
        await process.stop()


@pytest_asyncio.fixture
async def mutual(start, authority: Authority) -> tuple[str, str]:
    """A relay that speaks TLS only, whose callers the authority knows; its address and the downstream's."""
    downstream = await start("downstream_service", "--listen", "127.0.0.1:0", "--ready-json")
    files = ("--tls-certificate", "relay.pem", "--tls-key", "relay.key", "--tls-client-ca", "ca.pem")
    flags = [text if text.startswith("--") else str(authority.folder / text) for text in files]
    ready = await start(
        "relay_service",
        *(*ANY_PORTS, "--ready-json", *flags, "--policy", "payments-demo"),
        *("--upstream", downstream["listen"]),
    )
    return ready["relay"], downstream["listen"]


def purchase() -> payment_pb2.ChargeRequest:
    return payment_pb2.ChargeRequest(account="a", amount_minor=5, currency="EUR")


async def charge(address: str, credentials: grpc.ChannelCredentials | None, key: str = "") -> object:
    metadata = (("idempotency-key", key),) if key else ()
    open_channel = grpc.aio.secure_channel if credentials else grpc.aio.insecure_channel
    arguments = (address, credentials) if credentials else (address,)
    async with open_channel(*arguments) as channel:
        stub = payment_pb2_grpc.PaymentServiceStub(channel)
        return await stub.Charge(purchase(), timeout=TIMEOUT_S, metadata=metadata)


async def test_only_callers_with_a_certificate_are_served_and_only_over_tls(
    mutual: tuple[str, str], authority: Authority
) -> None:
    relay, _ = mutual
    assert (await charge(relay, authority.credentials("alice"))).charge.account == "a"
    for stranger in (authority.credentials(None), None):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await charge(relay, stranger)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_one_key_of_two_identities_is_two_keys(mutual: tuple[str, str], authority: Authority) -> None:
    relay, _ = mutual
    first = await charge(relay, authority.credentials("alice"), "same")
    again = await charge(relay, authority.credentials("alice"), "same")
    other = await charge(relay, authority.credentials("bob"), "same")
    assert first.charge.sequence == again.charge.sequence != other.charge.sequence


async def test_the_class_of_a_call_is_bound_to_the_identity_of_its_caller(
    start, authority: Authority, tmp_path: Path
) -> None:
    """All ask for the highest; the books of the relay's queue tell what they got."""
    downstream = await start("downstream_service", "--listen", "127.0.0.1:0", "--ready-json")
    caps = {"identified": "SHEDDABLE_PLUS", "identities": {"spiffe://shop/alice": "CRITICAL"}}
    policy = tmp_path / "policy.json"
    upstreams = {"upstream": {"target": downstream["listen"]}}
    policy.write_text(
        json.dumps({"relay": {"preset": "payments-demo", "upstreams": upstreams, "criticality": caps}})
    )
    files = ("--tls-certificate", "relay.pem", "--tls-key", "relay.key", "--tls-client-ca", "ca.pem")
    flags = [text if text.startswith("--") else str(authority.folder / text) for text in files]
    ready = await start("relay_service", *ANY_PORTS, "--ready-json", *flags, "--policy", str(policy))

    async def ask(name: str, *classes: str) -> None:
        async with grpc.aio.secure_channel(ready["relay"], authority.credentials(name)) as channel:
            stub = payment_pb2_grpc.PaymentServiceStub(channel)
            for one in classes:
                metadata = (("relay-criticality", one),) if one else ()
                await stub.Charge(purchase(), timeout=TIMEOUT_S, metadata=metadata)

    await ask("alice", "CRITICAL_PLUS", "CRITICAL", "SHEDDABLE")
    await ask("bob", "CRITICAL_PLUS", "", "SHEDDABLE")
    async with grpc.aio.insecure_channel(ready["admin"]) as channel:
        response = await admin_pb2_grpc.AdminServiceStub(channel).GetStats(admin_pb2.GetStatsRequest())
    queue = response.stats.queue
    taken = {one.criticality: one.taken for one in queue.classes}
    assert taken == {"CRITICAL_PLUS": 0, "CRITICAL": 2, "SHEDDABLE_PLUS": 2, "SHEDDABLE": 2}
    assert queue.capped == 3


async def test_a_relay_calls_an_upstream_over_mutual_tls(
    start, mutual: tuple[str, str], authority: Authority, tmp_path: Path
) -> None:
    """Two relays in a row, the second reached over TLS: its methods are learnt the same way."""
    port = mutual[0].rpartition(":")[2]
    tls = {
        "ca": str(authority.file),
        "certificate": str(authority.folder / "alice.pem"),
        "key": str(authority.folder / "alice.key"),
        "serverName": "localhost",
    }
    policy = tmp_path / "policy.json"
    upstreams = {"far": {"target": f"127.0.0.1:{port}", "tls": tls}}
    policy.write_text(json.dumps({"relay": {"preset": "default", "upstreams": upstreams}}))
    near = await start("relay_service", *ANY_PORTS, "--ready-json", "--policy", str(policy))
    assert (await charge(near["relay"], None, "k")).charge.account == "a"
    upstreams["far"]["tls"] = tls | {"serverName": "somebody.else"}
    policy.write_text(json.dumps({"relay": {"preset": "default", "upstreams": upstreams}}))
    wary = await start("relay_service", *ANY_PORTS, "--ready-json", "--policy", str(policy))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await charge(wary["relay"], None, "k")
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "certificate" in refused.value.details().lower()


async def test_relay_call_speaks_tls(mutual: tuple[str, str], authority: Authority) -> None:
    request = '{"account": "a", "amountMinor": "5", "currency": "EUR"}'
    flags = ["--tls-ca", str(authority.file), "--tls-certificate", str(authority.folder / "bob.pem")]
    flags += ["--tls-key", str(authority.folder / "bob.key")]
    done = await asyncio.to_thread(
        CliRunner().invoke, app, ["call", CHARGE, request, "-a", mutual[0], *flags]
    )
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["charge"]["account"] == "a"


def test_a_renewed_certificate_is_taken_up_and_a_bad_one_is_left(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    for source, copy in zip(authority.sign("first", "DNS:first"), (certificate, key), strict=True):
        shutil.copy(source, copy)
    renewed = listening(certificate, key, None)
    assert not renewed.renew()
    assert served_name(renewed.context, authority) == "first"
    other_certificate, other_key = authority.sign("second", "DNS:second")
    shutil.copy(other_certificate, certificate)  # half of a pair
    assert not renewed.renew()
    assert "cannot be used" in caplog.text
    assert served_name(renewed.context, authority) == "first"
    shutil.copy(other_key, key)
    assert renewed.renew()
    assert served_name(renewed.context, authority) == "second"


def served_name(server, authority: Authority) -> str:
    """Whose certificate a handshake shows."""
    client = ssl.create_default_context(cafile=str(authority.file))
    client.check_hostname = False
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(to_client, to_server), server.wrap_bio(to_server, to_client, server_side=True)]
    for end in (ends[0], ends[1], ends[0]):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
    return ends[0].getpeercert()["subjectAltName"][0][1]


@pytest.mark.parametrize("missing", ["certificate", "key", "client_ca"])
def test_a_file_that_is_not_there_is_named(authority: Authority, missing: str) -> None:
    files = {
        "certificate": authority.folder / "relay.pem",
        "key": authority.folder / "relay.key",
        "client_ca": authority.file,
    }
    files[missing] = authority.folder / "nowhere.pem"
    with pytest.raises(TlsError, match=r"nowhere\.pem cannot be read: No such file"):
        listening(**files)


def test_half_of_tls_is_told_before_anything_listens(authority: Authority) -> None:
    done = CliRunner().invoke(app, ["serve", "--tls-certificate", str(authority.file)])
    assert done.exit_code == 2
    assert "--tls-key: is required for TLS" in done.stderr
