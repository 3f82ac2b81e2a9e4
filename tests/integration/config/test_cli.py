"""The `relay` command, by its verbs and its exit codes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import timestamp_pb2
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from typer.testing import CliRunner

from protos.downstream.v1 import payment_pb2
from relay_service.cli.app import app
from relay_service.core.reason import Reason
from relay_service.core.status import Code

CHARGE = "downstream.v1.PaymentService/Charge"
UNDECLARED = [
    f"downstream.v1.PaymentService/{name}" for name in ("Authorize", "Charge", "ChargeBatch", "UploadCharges")
]
"""Of which the protos of the practice service say nothing."""


def run_process(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "relay_service", *arguments]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("RELAY_", "OTEL_"))}
    return subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=60, check=False, env=clean
    )


def one_line(stderr: str) -> str:
    (line,) = stderr.splitlines()
    assert line.startswith("error: ")
    return line


def descriptor_set(folder: Path, *files: FileDescriptor) -> Path:
    """A file as protoc writes it."""
    path = folder / "service.pb"
    protos = [FileDescriptorProto.FromString(file.serialized_pb) for file in files]
    path.write_bytes(FileDescriptorSet(file=protos).SerializeToString())
    return path


class TestExplain:
    @pytest.mark.parametrize("subject", [*Reason, *Code], ids=lambda subject: subject.name)
    def test_every_reason_and_every_code_is_explained(self, cli: CliRunner, subject: Reason | Code) -> None:
        result = cli.invoke(app, ["explain", subject.name])
        assert result.exit_code == 0
        assert result.stdout.startswith(subject.name)
        for part in ("Meaning:", "When:", "What to do:"):
            assert part in result.stdout

    def test_without_a_name_all_are_listed(self, cli: CliRunner) -> None:
        words = cli.invoke(app, ["explain"]).stdout.split()
        assert {subject.name for subject in (*Reason, *Code)} <= set(words)

    def test_a_code_may_be_given_by_number_and_a_name_in_any_case(self, cli: CliRunner) -> None:
        assert cli.invoke(app, ["explain", "14"]).stdout == cli.invoke(app, ["explain", "unavailable"]).stdout
        assert cli.invoke(app, ["explain", "queue-full"]).stdout.startswith("QUEUE_FULL")

    def test_json_has_the_same_for_all(self, cli: CliRunner) -> None:
        told = json.loads(cli.invoke(app, ["explain", "--json"]).stdout)
        assert len(told) == len(Reason) + len(Code)
        assert all(entry["meaning"] and entry["when"] and entry["advice"] for entry in told)

    def test_an_unknown_name_is_told_with_the_nearest(self, cli: CliRunner) -> None:
        result = cli.invoke(app, ["explain", "QUEUEFULL"])
        assert result.exit_code == 2
        assert "did you mean QUEUE_FULL?" in one_line(result.stderr)


class TestLint:
    def test_a_clean_file_is_0(self, cli: CliRunner) -> None:
        result = cli.invoke(app, ["lint", "default"])
        assert (result.exit_code, result.stdout, result.stderr) == (0, "default: no errors, 0 warnings\n", "")

    def test_warnings_are_told_and_are_0(self, cli: CliRunner, policy_file) -> None:
        result = cli.invoke(app, ["lint", str(policy_file({}))])
        assert result.exit_code == 0
        assert "[nothing-retried]" in result.stdout
        assert "no errors, 1 warning\n" in result.stdout

    def test_errors_are_1(self, cli: CliRunner, policy_file) -> None:
        file = policy_file({"relay": {"off": ["x"]}})
        result = cli.invoke(app, ["lint", str(file)])
        assert result.exit_code == 1
        assert one_line(result.stderr).startswith(f'error: {file}: relay.off[0]: got "x"; must be ')

    def test_a_file_that_is_not_there_is_2(self, cli: CliRunner) -> None:
        result = cli.invoke(app, ["lint", "nowhere.json"])
        assert result.exit_code == 2
        assert "no such file" in one_line(result.stderr)

    def test_json_holds_errors_and_warnings(self, cli: CliRunner, policy_file) -> None:
        warned = json.loads(cli.invoke(app, ["lint", "--json", str(policy_file({}))]).stdout)
        assert [warning["rule"] for warning in warned["warnings"]] == ["nothing-retried"]
        failed = cli.invoke(app, ["lint", "--json", str(policy_file({"x": 1}))])
        assert failed.exit_code == 1
        assert [error["path"] for error in json.loads(failed.stdout)["errors"]] == ["x"]

    def test_methods_that_nobody_has_declared_are_listed_from_a_descriptor_set(
        self, cli: CliRunner, tmp_path: Path
    ) -> None:
        file = descriptor_set(tmp_path, payment_pb2.DESCRIPTOR, timestamp_pb2.DESCRIPTOR)
        result = cli.invoke(app, ["lint", "default", "--descriptors", str(file)])
        assert (result.exit_code, result.stderr) == (0, "")
        *warnings, last = result.stdout.splitlines()
        assert [line.split(": ")[2] for line in warnings] == UNDECLARED
        assert all(line.endswith("[safety-undeclared]") for line in warnings)
        assert last == "default: no errors, 4 warnings"

    def test_the_practice_services_policy_leaves_none(self, cli: CliRunner, server: str) -> None:
        assert UNDECLARED[0] in cli.invoke(app, ["lint", "default", "--descriptors", server]).stdout
        result = cli.invoke(app, ["lint", "payments-demo", "--descriptors", server])
        assert result.stdout == "payments-demo: no errors, 0 warnings\n"

    @pytest.mark.parametrize(
        ("content", "told"),
        [
            (None, "cannot be read: No such file or directory"),
            (b"\xff\xff", "is no descriptor set"),
            (b"", "describes nothing"),
        ],
    )
    def test_descriptors_that_cannot_be_used_are_2(
        self, cli: CliRunner, tmp_path: Path, content: bytes | None, told: str
    ) -> None:
        file = tmp_path / "service.pb"
        if content is not None:
            file.write_bytes(content)
        result = cli.invoke(app, ["lint", "default", "--descriptors", str(file)])
        assert result.exit_code == 2
        assert told in one_line(result.stderr)

    def test_a_descriptor_set_without_its_imports_says_what_it_lacks(
        self, cli: CliRunner, tmp_path: Path
    ) -> None:
        file = descriptor_set(tmp_path, payment_pb2.DESCRIPTOR)
        result = cli.invoke(app, ["lint", "default", "--descriptors", str(file)])
        assert result.exit_code == 2
        assert "write it with --include_imports" in one_line(result.stderr)

    def test_descriptors_at_an_address_where_nobody_is_are_2(self, cli: CliRunner) -> None:
        result = cli.invoke(app, ["lint", "default", "--descriptors", "127.0.0.1:1"])
        assert result.exit_code == 2
        assert "Is it running?" in one_line(result.stderr)


class TestCall:
    def test_a_unary_call_prints_its_response_as_json(self, cli: CliRunner, server: str) -> None:
        request = '{"account": "a", "amountMinor": "5"}'
        result = cli.invoke(app, ["call", CHARGE, request, "-a", server, "-H", "idempotency-key: k1"])
        assert (result.exit_code, result.stderr) == (0, "")
        assert json.loads(result.stdout) == {
            "charge": {"account": "a", "amountMinor": "5", "idempotencyKey": "k1"}
        }

    def test_the_address_is_the_relays_own_by_default(self, cli: CliRunner, server: str, monkeypatch) -> None:
        monkeypatch.setenv("RELAY_LISTEN", server)
        assert cli.invoke(app, ["call", f"/{CHARGE}"]).exit_code == 0

    def test_verbose_shows_metadata_and_trailers_beside_the_response(
        self, cli: CliRunner, server: str
    ) -> None:
        result = cli.invoke(app, ["call", CHARGE, "{}", "-a", server, "-v"])
        assert "  relay-attempts: 1" in result.stderr.splitlines()
        assert "  seen-key-bin: AAE=" in result.stderr.splitlines()
        assert json.loads(result.stdout)

    def test_a_failed_call_is_1_with_its_details_readable(self, cli: CliRunner, server: str) -> None:
        result = cli.invoke(app, ["call", CHARGE, '{"account": "broke"}', "-a", server])
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.splitlines() == [
            "error: RESOURCE_EXHAUSTED: come back later",
            '  ErrorInfo {"reason": "QUEUE_FULL", "domain": "resilient-relay"}',
            '  RetryInfo {"retryDelay": "0.250s"}',
            "  acme.Unknown (3 bytes)",
        ]

    def test_a_failure_without_details_is_one_line(self, cli: CliRunner, server: str) -> None:
        result = cli.invoke(app, ["call", "downstream.v1.PaymentService/ListCharges", "-a", server])
        assert (result.exit_code, result.stderr) == (1, "error: UNAVAILABLE: nobody is home\n")

    def test_a_server_stream_prints_each_message(self, cli: CliRunner, server: str) -> None:
        method = "downstream.v1.PaymentService/WatchCharges"
        result = cli.invoke(app, ["call", method, '{"maxCharges": 3}', "-a", server])
        assert result.exit_code == 0
        assert result.stdout.count('"sequence"') == 3

    def test_a_client_stream_takes_a_list(self, cli: CliRunner, server: str) -> None:
        method = "downstream.v1.PaymentService/UploadCharges"
        result = cli.invoke(app, ["call", method, "-", "-a", server], input="[{}, {}, {}]")
        assert json.loads(result.stdout) == {"received": "3"}

    def test_health_can_be_asked_even_without_reflection(self, cli: CliRunner, silent_server: str) -> None:
        result = cli.invoke(app, ["call", "grpc.health.v1.Health/Check", "-a", silent_server])
        assert json.loads(result.stdout) == {"status": "SERVING"}

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            (["a.B/C"], "no service 'a.B'"),
            (["downstream.v1.PaymentService/Refund"], "has no method 'Refund'; it has Charge, ChargeBatch"),
            ([CHARGE, "{"], "the request is not JSON"),
            ([CHARGE, '{"acount": "a"}'], "the request is no downstream.v1.ChargeRequest"),
            ([CHARGE, "[{}]"], "Charge takes one message, not a list"),
            ([CHARGE, "{}", "-H", "Key: v"], "the name in lower case"),
            ([CHARGE, "{}", "-H", "a-bin: !"], "must be base64"),
            ([CHARGE, "{}", "-a", "nowhere"], "--address: got 'nowhere'; must be host:port"),
        ],
        ids=lambda value: str(value)[-30:],
    )
    def test_a_call_that_cannot_be_made_is_2(
        self, cli: CliRunner, server: str, arguments: list[str], told: str
    ) -> None:
        address = [] if "-a" in arguments else ["-a", server]
        result = cli.invoke(app, ["call", *arguments, *address])
        assert result.exit_code == 2
        assert told in one_line(result.stderr)

    def test_an_unknown_service_without_reflection_is_2(self, cli: CliRunner, silent_server: str) -> None:
        result = cli.invoke(app, ["call", "acme.Unknown/Do", "-a", silent_server])
        assert result.exit_code == 2
        assert "offers no reflection" in one_line(result.stderr)

    def test_nobody_at_the_address_is_1_and_soon(self, cli: CliRunner) -> None:
        result = cli.invoke(app, ["call", CHARGE, "-a", "127.0.0.1:1", "--timeout", "2"])
        assert result.exit_code == 1
        assert "cannot reach 127.0.0.1:1" in one_line(result.stderr)


class TestStats:
    def test_the_tables_hold_the_numbers(self, cli: CliRunner, server: str) -> None:
        result = cli.invoke(app, ["stats", "-a", server], env={"COLUMNS": "120"})
        assert result.exit_code == 0
        words = result.stdout.split()
        assert {"7", "a.B/C", "payments", "READY", "QUEUE_FULL", "1/100", "5/5", "12.0"} <= set(words)
        assert {"Breakers", "OPEN", "28/29", "FAILURE_RATIO"} <= set(words)

    def test_json_is_one_line(self, cli: CliRunner, server: str) -> None:
        result = cli.invoke(app, ["stats", "-a", server, "--json"])
        (line,) = result.stdout.splitlines()
        assert json.loads(line)["calls"]["by_reason"] == {"QUEUE_FULL": "2"}

    def test_watching_prints_a_line_for_each_look(self, cli: CliRunner, server: str) -> None:
        result = cli.invoke(app, ["stats", "-a", server, "--json", "--watch"])
        assert (result.exit_code, len(result.stdout.splitlines())) == (0, 3)

    def test_watching_as_tables_ends_with_the_last_look(self, cli: CliRunner, server: str) -> None:
        result = cli.invoke(app, ["stats", "-a", server, "--watch"])
        assert result.exit_code == 0
        assert "payments" in result.stdout

    def test_nobody_at_the_address_is_2(self, cli: CliRunner) -> None:
        result = cli.invoke(app, ["stats", "-a", "127.0.0.1:1"])
        assert result.exit_code == 2
        assert "Is the relay running" in one_line(result.stderr)


class TestProcess:
    """As a person starts it."""

    def test_version(self) -> None:
        result = run_process("--version")
        assert (result.returncode, result.stdout.split()[0]) == (0, "relay")

    def test_bad_usage_is_2_without_a_traceback(self) -> None:
        result = run_process("serve", "--colour", "blue")
        assert result.returncode == 2
        assert "Traceback" not in result.stderr

    def test_wrong_settings_are_2_with_a_line_each(self) -> None:
        result = run_process("serve", "--listen", "nowhere", "--sample-ratio", "3", "--log-level", "loud")
        assert (result.returncode, result.stdout) == (2, "")
        lines = result.stderr.splitlines()
        assert [line.split(":")[1] for line in lines] == [" --listen", " --sample-ratio", " --log-level"]

    def test_a_bad_policy_file_is_2_with_the_path_of_the_fault(self, policy_file) -> None:
        file = policy_file({"relay": {"maxHops": 0}})
        result = run_process("serve", "--policy", str(file))
        assert result.returncode == 2
        assert one_line(result.stderr).startswith(f"error: {file}: relay.maxHops: got 0; must be ")

    def test_the_request_may_come_from_stdin(self, server: str) -> None:
        result = run_process("call", CHARGE, "-", "--address", server, stdin='{"account": "from stdin"}')
        assert (result.returncode, json.loads(result.stdout)["charge"]["account"]) == (0, "from stdin")

    def test_exit_codes_reach_the_shell(self, tmp_path: Path) -> None:
        bad = tmp_path / "bad.json"
        bad.write_text("{")
        codes = [
            run_process(*arguments).returncode
            for arguments in (("lint", "default"), ("lint", str(bad)), ("explain", "x"))
        ]
        assert codes == [0, 1, 2]
