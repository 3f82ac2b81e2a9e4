"""Proto files, resolved: which services there are, what their methods are like, where a symbol lives."""

import re
from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter

from google.protobuf.descriptor import FileDescriptor, MethodDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, MethodOptions
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError

from relay_service.core.evidence import Safety
from relay_service.methods import MethodFacts

FAULTS_MAX = 20
"""How many faults are kept; a broken upstream repeats itself."""

_SERVICE_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_SERVICE_NAME_CHARS_MAX = 512


class DescriptorSet:
    """Proto files in a descriptor pool of their own, so that no two sets can clash with each other.

    Immutable once made. Look-ups answer with serialised ``FileDescriptorProto``\\ s: the file asked for
    first, then everything it imports, so that an answer is complete in itself; empty when not found.
    """

    def __init__(
        self,
        services: tuple[str, ...],
        files: Mapping[str, bytes],
        pool: DescriptorPool,
        faults: tuple[str, ...],
    ) -> None:
        self.services = services
        """Full names, sorted."""
        self.files = files
        """Serialised files by name, those only that could be resolved."""
        self.faults = faults
        """What was wrong with the files, for people; at most `FAULTS_MAX` lines."""
        self._pool = pool
        self.methods: Mapping[str, MethodFacts] = {
            f"{service}/{method.name}": _facts(method)
            for service in services
            for method in _methods_of(pool, service)
        }
        """Facts by ``package.Service/Method``."""

    def file_by_name(self, name: str) -> list[bytes]:
        """The file of this name and its imports."""
        return self._closure(self._pool.FindFileByName(name)) if name in self.files else []

    def file_containing_symbol(self, symbol: str) -> list[bytes]:
        """The file that declares a message, field, enum, extension, service or method, and its imports."""
        try:
            return self._closure(self._pool.FindFileContainingSymbol(symbol))
        except KeyError:
            return self._file_containing_method(symbol)

    def _file_containing_method(self, symbol: str) -> list[bytes]:
        # The pool does not count methods among its symbols, the reflection protocol does.
        service, _, method = symbol.rpartition(".")
        return self.file_containing_symbol(service) if f"{service}/{method}" in self.methods else []

    def file_containing_extension(self, message: str, number: int) -> list[bytes]:
        """The file that declares the extension of ``message`` with this field number, and its imports."""
        try:
            extended = self._pool.FindMessageTypeByName(message)
            extension = self._pool.FindExtensionByNumber(extended, number)
            return self._closure(self._pool.FindFileContainingSymbol(extension.full_name))
        except KeyError:
            return []

    def extension_numbers(self, message: str) -> list[int] | None:
        """The field numbers of all known extensions of ``message``, sorted; None for an unknown message."""
        try:
            extended = self._pool.FindMessageTypeByName(message)
        except KeyError:
            return None
        return sorted(extension.number for extension in self._pool.FindAllExtensions(extended))

    def _closure(self, file: FileDescriptor) -> list[bytes]:
        found = {file.name: self.files[file.name]}
        waiting = list(file.dependencies)
        while waiting:
            dependency = waiting.pop()
            if dependency.name not in found:
                found[dependency.name] = self.files[dependency.name]
                waiting.extend(dependency.dependencies)
        return list(found.values())


NO_DESCRIPTORS = DescriptorSet((), {}, DescriptorPool(), ())
"""Nothing known."""


def resolve(services: Iterable[str], files: Mapping[str, bytes]) -> DescriptorSet:
    """Build a set from what a stranger sent; what does not fit becomes a fault, never an exception.

    A file is left out when it cannot be parsed, when an import is missing or broken, or when it
    declares what an earlier one has declared. A service whose file was left out is still listed, as
    it can be called; it only has no facts.
    """
    faults: list[str] = []
    pool = DescriptorPool()
    resolved: dict[str, bytes] = {}
    for name in _imports_first(files, faults):
        try:
            pool.AddSerializedFile(files[name])
        except (TypeError, ValueError, DecodeError) as error:
            faults.append(f"{name}: {error}")
        else:
            resolved[name] = files[name]
    listed = sorted({service for service in services if _is_service_name(service, faults)})
    undeclared = (service for service in listed if not _is_declared(pool, service))
    faults.extend(f"{service}: listed, but no usable file declares it" for service in undeclared)
    return DescriptorSet(tuple(listed), resolved, pool, tuple(faults[:FAULTS_MAX]))


def file_imports(serialized: bytes) -> tuple[str, tuple[str, ...]]:
    """The name of a serialised file and the names of its direct imports.

    Raises ValueError when the bytes are no ``FileDescriptorProto`` or name no file.
    """
    try:
        file = FileDescriptorProto.FromString(serialized)
    except DecodeError as error:
        raise ValueError(f"not a FileDescriptorProto: {error}") from error
    # Bytes that are no UTF-8 come out as `bytes`, whatever the type says.
    names: list[object] = [file.name, *file.dependency]
    if not all(isinstance(name, str) and name for name in names):
        raise ValueError("a file or an import without a readable name")
    return file.name, tuple(file.dependency)


def _imports_first(files: Mapping[str, bytes], faults: list[str]) -> list[str]:
    order: TopologicalSorter[str] = TopologicalSorter()
    for name, serialized in files.items():
        order.add(name, *(i for i in file_imports(serialized)[1] if i in files))
    try:
        order.prepare()
    except CycleError as error:
        faults.append(f"imports form a circle: {' -> '.join(error.args[1])}")
    ordered: list[str] = []
    # After a CycleError the sorter still hands out everything that lies outside the circle.
    while ready := order.get_ready():
        ordered.extend(ready)
        order.done(*ready)
    return ordered


def _is_service_name(name: str, faults: list[str]) -> bool:
    fits = len(name) <= _SERVICE_NAME_CHARS_MAX and _SERVICE_NAME.fullmatch(name) is not None
    if not fits:
        faults.append(f"{name[:80]!r}: not the name of a service")
    return fits


def _is_declared(pool: DescriptorPool, service: str) -> bool:
    try:
        pool.FindServiceByName(service)
    except KeyError:
        return False
    return True


def _methods_of(pool: DescriptorPool, service: str) -> Iterable[MethodDescriptor]:
    try:
        return pool.FindServiceByName(service).methods
    except KeyError:
        return ()


def _facts(method: MethodDescriptor) -> MethodFacts:
    return MethodFacts(
        unary=not (method.client_streaming or method.server_streaming),
        safety=_safety(method.GetOptions().idempotency_level),
        input_type=method.input_type.full_name,
        output_type=method.output_type.full_name,
    )


def _safety(level: int) -> Safety | None:
    match level:
        case MethodOptions.NO_SIDE_EFFECTS:
            return Safety.NO_SIDE_EFFECTS
        case MethodOptions.IDEMPOTENT:
            return Safety.IDEMPOTENT
        case _:
            return None
