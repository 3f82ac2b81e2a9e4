"""What to say when an address cannot be listened on."""

import asyncio
import os
import socket

from relay_service.config.addresses import Address, TcpAddress


class BindError(Exception):
    """An address could not be listened on; the text names it, its purpose and the cause."""

    def __init__(self, purpose: str, address: str, cause: str) -> None:
        super().__init__(f"cannot listen on {address} ({purpose}): {cause}")
        self.purpose = purpose
        self.address = address


async def why_not_bound(address: Address) -> str:
    """Try ``address`` with a plain socket: grpcio does not say why it could not bind."""
    try:
        server = await _listen(address)
    except OSError as error:
        return cause_of(error)
    server.close()
    await server.wait_closed()
    return "it was not free a moment ago"


def cause_of(error: OSError | ValueError) -> str:
    """The cause in a few words, without the address, which asyncio repeats."""
    match error:
        case socket.gaierror():
            return f"the host is unknown ({error.strerror})"
        case OSError(errno=int(number)):
            return os.strerror(number).lower()
        case _:
            return str(error)


async def _listen(address: Address) -> asyncio.Server:
    if isinstance(address, TcpAddress):
        return await asyncio.start_server(_hang_up, address.host, address.port)
    return await asyncio.start_unix_server(_hang_up, address.path)


def _hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()
