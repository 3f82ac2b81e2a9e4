"""The generator and the echo: compiled where a C compiler and nghttp2 are, else their Python stand-ins."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorProto, MethodOptions
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionResponse

from tests.bench.workload import METHOD_PATH

_SOURCES = Path(__file__).parent / "native"
_FLAGS = ("-O2", "-std=gnu11")
_COMPILE_TIMEOUT_S = 120


@dataclass(frozen=True, slots=True)
class Tools:
    """Two command lines that take the same flags and print the same JSON, whatever they are made of."""

    loadgen: tuple[str, ...]
    echo: tuple[str, ...]
    native: bool
    note: str
    """What they are, or why they are not native."""


def find_tools(build_dir: Path) -> Tools:
    """Compile into ``build_dir``; fall back to Python when that cannot be done on this machine."""
    build_dir.mkdir(parents=True, exist_ok=True)
    reflection = build_dir / "reflection.bin"
    reflection.write_bytes(_reflection_answers())
    options = ("--path", METHOD_PATH, "--reflection", str(reflection))
    why_not = _compile(build_dir)
    if why_not is None:
        note = "generator and echo: native (C, nghttp2)"
        return Tools(
            (str(build_dir / "loadgen"),), (str(build_dir / "echo"), *options), native=True, note=note
        )
    return python_tools(options, f"generator and echo: Python, every row is generator-bound ({why_not})")


def python_tools(echo_options: tuple[str, ...] = (), note: str = "generator and echo: Python") -> Tools:
    """The stand-ins on grpc.aio; run from the project's root."""
    module = (sys.executable, "-m")
    return Tools(
        loadgen=(*module, "tests.bench.fallback.loadgen"),
        echo=(*module, "tests.bench.fallback.echo", *echo_options),
        native=False,
        note=note,
    )


def _compile(build_dir: Path) -> str | None:
    """None when both programs are built, else why not. Only a trial also finds a broken set-up."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return "no C compiler found"
    for program in ("loadgen", "echo"):
        sources = [str(_SOURCES / f"{name}.c") for name in (program, "connection")]
        command = [
            *compiler.split(),
            *_FLAGS,
            *_pkg_config("--cflags"),
            "-o",
            str(build_dir / program),
            *sources,
        ]
        try:
            done = subprocess.run(
                [*command, *_pkg_config("--libs"), "-lm"],
                capture_output=True,
                timeout=_COMPILE_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"{compiler}: {error}"
        if done.returncode != 0:
            complaint = done.stderr.decode(errors="replace")
            if "nghttp2/nghttp2.h" in complaint or "lnghttp2" in complaint:
                return "the headers of libnghttp2 are not installed (Debian: libnghttp2-dev)"
            return f"{program}.c does not compile here: {complaint.strip().splitlines()[0][:200]}"
    return None


def _pkg_config(what: str) -> list[str]:
    fallback = ["-lnghttp2"] if what == "--libs" else []
    if shutil.which("pkg-config") is None:
        return fallback
    done = subprocess.run(
        ["pkg-config", what, "libnghttp2"], capture_output=True, text=True, timeout=10, check=False
    )
    return done.stdout.split() if done.returncode == 0 else fallback


def _reflection_answers() -> bytes:
    """The echo of itself: the framed answers to ``list_services`` and to any request for a descriptor."""
    service_name, method_name = METHOD_PATH.strip("/").split("/")
    package, service = service_name.rsplit(".", 1)
    file = FileDescriptorProto(name="bench/echo.proto", package=package, syntax="proto3")
    file.message_type.add(name="Payload")
    method = file.service.add(name=service).method.add(name=method_name)
    method.input_type = method.output_type = f".{package}.Payload"
    method.options.idempotency_level = MethodOptions.IDEMPOTENT
    listed, described = ServerReflectionResponse(), ServerReflectionResponse()
    listed.list_services_response.service.add(name=service_name)
    described.file_descriptor_response.file_descriptor_proto.append(file.SerializeToString())
    return b"".join(
        b"\0" + len(message).to_bytes(4, "big") + message
        for message in (listed.SerializeToString(), described.SerializeToString())
    )
