"""A Toxiproxy and a lab without the plugin, and an echo to talk to through them."""

import socketserver
import threading

import pytest

from chaos.plugin import open_lab
from chaos.toxiproxy.launcher import Embedded, launch

SEED = 7


class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(4096):
            self.request.sendall(data)


class EchoServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request, client_address):
        """A connection that is cut is what these tests are about."""


@pytest.fixture(scope="session")
def toxiproxy(tmp_path_factory):
    with launch(Embedded(), seed=SEED, log_dir=tmp_path_factory.mktemp("toxiproxy")) as running:
        yield running


@pytest.fixture
def lab(toxiproxy, tmp_path):
    with open_lab(toxiproxy, tmp_path / "lab", SEED) as opened:
        yield opened


@pytest.fixture
def echo():
    with EchoServer(("127.0.0.1", 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()
