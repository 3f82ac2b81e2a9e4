"""What a service offers, told by itself or by a file that protoc or buf wrote."""

import asyncio
import re
from pathlib import Path

import grpc.aio
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.message import DecodeError

from relay_service.cli.caller import offered
from relay_service.control.descriptor_set import DescriptorSet, resolve
from relay_service.control.reflection_client import ReflectionNotOfferedError, UpstreamUnreachableError

_ADDRESS = re.compile(r"\S+:\d{1,5}", re.ASCII)


class UndescribedError(Exception):
    """Nothing can be learned there; the text says why, and what to do."""


def described(source: str) -> DescriptorSet:
    """The services at ``source``: a descriptor set, or HOST:PORT of a server that offers reflection.

    Raises `UndescribedError`, also where only a part of it can be used.
    """
    path = Path(source)
    if path.exists() or not _ADDRESS.fullmatch(source):
        known = _in_file(path)
    else:
        known = asyncio.run(_at_server(source))
    if known.faults:
        raise UndescribedError(f"{source}: {'; '.join(known.faults)}")
    return known


def _in_file(path: Path) -> DescriptorSet:
    try:
        files = FileDescriptorSet.FromString(path.read_bytes()).file
    except OSError as error:
        raise UndescribedError(f"{path} cannot be read: {error.strerror}") from error
    except DecodeError as error:
        raise UndescribedError(f"{path} is no descriptor set: {error}") from error
    if not files:
        raise UndescribedError(f"{path} describes nothing")
    present = {file.name for file in files}
    if missing := sorted({name for file in files for name in file.dependency} - present):
        text = f"{path} lacks {', '.join(missing)}: write it with --include_imports"
        raise UndescribedError(text)
    services = [f"{file.package}.{one.name}".lstrip(".") for file in files for one in file.service]
    return resolve(services, {file.name: file.SerializeToString() for file in files})


async def _at_server(address: str) -> DescriptorSet:
    async with grpc.aio.insecure_channel(address) as channel:
        try:
            return await offered(channel)
        except UpstreamUnreachableError as error:
            raise UndescribedError(f"cannot reach {address}: {error}. Is it running?") from error
        except ReflectionNotOfferedError as error:
            raise UndescribedError(f"{address} offers no reflection: name a descriptor set") from error
