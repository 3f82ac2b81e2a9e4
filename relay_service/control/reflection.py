"""Server reflection for the relay: its own services and its upstreams', as if they were one server.

Both names of the protocol are served: ``grpc.reflection.v1`` and ``v1alpha`` share their messages.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Sequence

import grpc
import grpc.aio
from google.protobuf import text_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import Default
from google.rpc import error_details_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection_pb2 import (
    ErrorResponse,
    ExtensionNumberResponse,
    FileDescriptorResponse,
    ListServiceResponse,
    ServerReflectionRequest,
    ServerReflectionResponse,
    ServiceResponse,
)

from relay_service.control.descriptor_set import DescriptorSet, resolve
from relay_service.control.names import REFLECTION_V1, REFLECTION_V1ALPHA

_ANSWER_BYTES_MAX = 3 * 1024 * 1024
"""Below the 4 MiB that a gRPC client accepts by default. A larger answer shrinks to the file itself;
the client then asks for the imports one by one, as the protocol allows."""


class Reflection:
    """Answers reflection streams from descriptor sets; the first set that knows a name answers for it.

    ``sets`` is asked for at each request, so that what an upstream has just told is shown at once.
    Files of one name in two sets stay apart: an answer holds the imports of its own set.
    """

    def __init__(self, sets: Callable[[], Sequence[DescriptorSet]]) -> None:
        self._sets = sets

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve the protocol under both of its names."""
        handler = grpc.stream_stream_rpc_method_handler(
            self._converse,
            request_deserializer=ServerReflectionRequest.FromString,
            response_serializer=ServerReflectionResponse.SerializeToString,
        )
        for service in (REFLECTION_V1, REFLECTION_V1ALPHA):
            server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler(service, {"ServerReflectionInfo": handler}),)
            )

    async def _converse(
        self, requests: AsyncIterator[ServerReflectionRequest], _context: object
    ) -> AsyncIterator[ServerReflectionResponse]:
        async for request in requests:
            answer = self.answer(request)
            answer.valid_host = request.host
            answer.original_request.CopyFrom(request)
            yield answer

    def answer(self, request: ServerReflectionRequest) -> ServerReflectionResponse:
        """The answer to one request; for what is not known an ``error_response``, as the protocol says."""
        match request.WhichOneof("message_request"):
            case "list_services":
                return self._list()
            case "file_by_filename":
                name = request.file_by_filename
                return self._files(lambda known: known.file_by_name(name))
            case "file_containing_symbol":
                symbol = request.file_containing_symbol.removeprefix(".")
                return self._files(lambda known: known.file_containing_symbol(symbol))
            case "file_containing_extension":
                wanted = request.file_containing_extension
                return self._files(
                    lambda known: known.file_containing_extension(
                        wanted.containing_type, wanted.extension_number
                    )
                )
            case "all_extension_numbers_of_type":
                return self._extension_numbers(request.all_extension_numbers_of_type)
            case _:
                return _error(grpc.StatusCode.INVALID_ARGUMENT, "the request asks for nothing")

    def _list(self) -> ServerReflectionResponse:
        names = sorted({service for known in self._sets() for service in known.services})
        listed = ListServiceResponse(service=[ServiceResponse(name=name) for name in names])
        return ServerReflectionResponse(list_services_response=listed)

    def _files(self, look_up: Callable[[DescriptorSet], list[bytes]]) -> ServerReflectionResponse:
        files = next(filter(None, map(look_up, self._sets())), None)
        if files is None:
            return _error(grpc.StatusCode.NOT_FOUND, "neither the relay nor an upstream declares this")
        if sum(map(len, files)) > _ANSWER_BYTES_MAX:
            files = files[:1]
        return ServerReflectionResponse(
            file_descriptor_response=FileDescriptorResponse(file_descriptor_proto=files)
        )

    def _extension_numbers(self, message: str) -> ServerReflectionResponse:
        told = [
            numbers for known in self._sets() if (numbers := known.extension_numbers(message)) is not None
        ]
        if not told:
            return _error(
                grpc.StatusCode.NOT_FOUND, "neither the relay nor an upstream declares this message"
            )
        numbers = sorted({number for one in told for number in one})
        return ServerReflectionResponse(
            all_extension_numbers_response=ExtensionNumberResponse(
                base_type_name=message, extension_number=numbers
            )
        )


def _error(code: grpc.StatusCode, text: str) -> ServerReflectionResponse:
    return ServerReflectionResponse(
        error_response=ErrorResponse(error_code=code.value[0], error_message=text)
    )


def own_descriptors(services: Iterable[str]) -> DescriptorSet:
    """The descriptors of services whose generated code is loaded in this process, and of error details.

    grpcurl shows the details of an error as more than base64 only when reflection knows their types.
    Raises KeyError for a service that is not loaded.
    """
    files: dict[str, bytes] = {}
    _collect(error_details_pb2.DESCRIPTOR.name, files)
    for service in services:
        if service == REFLECTION_V1:
            files[_V1_FILE.name] = _V1_FILE.SerializeToString()
        else:
            _collect(Default().FindFileContainingSymbol(service).name, files)
    return resolve(services, files)


def _collect(name: str, files: dict[str, bytes]) -> None:
    file = Default().FindFileByName(name)
    files[name] = file.serialized_pb
    for dependency in file.dependencies:
        _collect(dependency.name, files)


def _v1_file() -> FileDescriptorProto:
    # grpcio ships v1alpha only; v1 differs from it in nothing but the name.
    v1alpha = FileDescriptorProto.FromString(reflection_pb2.DESCRIPTOR.serialized_pb)
    text = text_format.MessageToString(v1alpha).replace("v1alpha", "v1")
    return text_format.Parse(text, FileDescriptorProto())


_V1_FILE = _v1_file()
