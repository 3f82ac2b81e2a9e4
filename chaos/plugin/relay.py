"""A relay in front of the user's service: a process of its own, with the policy the test gives."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc

from chaos.plugin.service import Service
from protos.relay.v1 import admin_pb2, admin_pb2_grpc

STATS_TIMEOUT_S = 5.0
Policy = str | Path | Mapping[str, Any]
"""A preset's name, a file, or the document itself."""


class Relay(Service):
    """A running relay. Call ``address`` with the service's own stubs."""

    def __init__(self, upstream: str, policy: Policy, *, log_path: Path, seed: int) -> None:
        self.policy = policy_argument(policy, log_path.with_suffix(".policy.json"))
        self._ready_line: dict[str, Any] | None = None
        super().__init__([], log_path=log_path, name="relay")
        self._command = [
            *(sys.executable, "-m", "relay_service", "serve", "--ready-json"),
            *("--listen", self.address, "--admin-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"),
            *("--upstream", upstream, "--policy", self.policy, "--seed", str(seed)),
        ]

    @property
    def admin(self) -> str:
        """Where its AdminService listens."""
        return str(self._told_when_ready()["admin"])

    @property
    def http(self) -> str:
        """Where its metrics and health are."""
        return str(self._told_when_ready()["http"])

    def stats(self) -> admin_pb2.Stats:
        """Its counters and the state of every policy, now."""
        with grpc.insecure_channel(self.admin) as channel:
            stub = admin_pb2_grpc.AdminServiceStub(channel)
            answer = stub.GetStats(admin_pb2.GetStatsRequest(), timeout=STATS_TIMEOUT_S, wait_for_ready=True)
        return answer.stats

    def start(self, ready_timeout_s: float = 20.0) -> None:
        """Run it and wait until it says that it takes calls."""
        self._ready_line = None
        self._log_from = self.log_path.stat().st_size if self.log_path.exists() else 0
        super().start(ready_timeout_s)

    def _ready(self) -> bool:
        with self.log_path.open("rb") as log:
            log.seek(self._log_from)
            for line in log:
                if line.startswith(b'{"relay"') and line.endswith(b"\n"):
                    self._ready_line = json.loads(line)
                    return True
        return False

    def _told_when_ready(self) -> dict[str, Any]:
        if self._ready_line is None:
            raise RuntimeError("the relay was never started")
        return self._ready_line


def policy_argument(policy: Policy, path: Path) -> str:
    """What ``--policy`` takes: names and files as they are, a document by way of a file at ``path``."""
    if isinstance(policy, str | Path):
        return str(policy)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(policy, indent=2), encoding="utf-8")
    return str(path)
