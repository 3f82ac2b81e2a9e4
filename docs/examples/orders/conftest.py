"""Generates the stubs from the proto, as any build would, and says what the tests run against."""

import os
import sys
from pathlib import Path

import pytest
from grpc_tools import protoc

HERE = Path(__file__).parent
GENERATED = HERE / "generated"


def pytest_configure(config):
    GENERATED.mkdir(exist_ok=True)
    (GENERATED / "__init__.py").touch()
    outputs = [f"--python_out={GENERATED}", f"--grpc_python_out={GENERATED}"]
    if protoc.main(["protoc", f"-I{HERE}", *outputs, str(HERE / "orders.proto")]) != 0:
        raise pytest.UsageError("orders.proto does not compile")
    # The generated service module imports its messages by their bare name.
    sys.path[:0] = [str(HERE), str(GENERATED)]


@pytest.fixture
def policy():
    """The relay's policy. ORDERS_POLICY=passthrough switches all protection off: see the tests fail."""
    return os.environ.get("ORDERS_POLICY", str(HERE / "policy.json"))


@pytest.fixture
def books(tmp_path):
    """The service's own books, which alone tell what really happened."""
    return tmp_path / "books.txt"


@pytest.fixture
def service(chaos_lab, books):
    """The service, as a process."""
    command = [sys.executable, str(HERE / "orders_service.py"), "--port", "{port}", "--books", str(books)]
    return chaos_lab.service(command, name="orders", env={"PYTHONPATH": f"{HERE}:{GENERATED}"})
