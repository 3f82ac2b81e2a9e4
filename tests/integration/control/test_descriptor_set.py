"""What is made of proto files that a stranger sent."""

import random

import pytest
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.timestamp_pb2 import DESCRIPTOR as TIMESTAMP

from protos.downstream.v1.payment_pb2 import DESCRIPTOR as PAYMENT
from relay_service.control.descriptor_set import FAULTS_MAX, file_imports, resolve
from relay_service.core.evidence import Safety

PAYMENTS = "downstream.v1.PaymentService"


@pytest.fixture
def payments():
    return resolve([PAYMENTS], {file.name: file.serialized_pb for file in (PAYMENT, TIMESTAMP)})


def names(files: list[bytes]) -> list[str]:
    return [file_imports(file)[0] for file in files]


def extended_files() -> dict[str, bytes]:
    base = FileDescriptorProto(name="base.proto", package="b", syntax="proto2")
    base.message_type.add(name="Base").extension_range.add(start=100, end=200)
    extending = FileDescriptorProto(name="ext.proto", package="e", syntax="proto2", dependency=["base.proto"])
    for number in (120, 110):
        extending.extension.add(
            name=f"x{number}",
            number=number,
            extendee=".b.Base",
            type=FieldDescriptorProto.TYPE_INT32,
            label=FieldDescriptorProto.LABEL_OPTIONAL,
        )
    return {file.name: file.SerializeToString() for file in (base, extending)}


@pytest.mark.parametrize(
    ("method", "unary", "safety"),
    [
        ("Charge", True, None),
        ("ListCharges", True, Safety.NO_SIDE_EFFECTS),
        ("WatchCharges", False, Safety.NO_SIDE_EFFECTS),
        ("UploadCharges", False, None),
        ("Authorize", False, None),
    ],
)
def test_facts_tell_cardinality_and_idempotency(payments, method, unary, safety) -> None:
    facts = payments.methods[f"{PAYMENTS}/{method}"]
    assert (facts.unary, facts.safety) == (unary, safety)
    assert facts.input_type == f"downstream.v1.{method}Request"
    assert facts.output_type == f"downstream.v1.{method}Response"


def test_the_option_idempotent_is_told(make_service_file) -> None:
    file = make_service_file("orders.v1")
    known = resolve(["orders.v1.Service"], {file.name: file.SerializeToString()})
    assert known.methods["orders.v1.Service/Get"].safety is Safety.IDEMPOTENT


@pytest.mark.parametrize(
    "symbol", [PAYMENTS, f"{PAYMENTS}.Charge", "downstream.v1.Charge", "downstream.v1.Charge.note"]
)
def test_a_symbol_is_answered_with_its_file_first_and_then_its_imports(payments, symbol) -> None:
    assert names(payments.file_containing_symbol(symbol)) == [PAYMENT.name, TIMESTAMP.name]


@pytest.mark.parametrize("symbol", ["", ".", "downstream.v1", "downstream.v1.Nothing", f"{PAYMENTS}.Nothing"])
def test_an_unknown_symbol_is_answered_with_nothing(payments, symbol) -> None:
    assert payments.file_containing_symbol(symbol) == []


def test_extensions_are_found_by_type_and_number() -> None:
    known = resolve([], extended_files())
    assert known.extension_numbers("b.Base") == [110, 120]
    assert names(known.file_containing_extension("b.Base", 110)) == ["ext.proto", "base.proto"]
    assert known.file_containing_extension("b.Base", 111) == []
    assert known.file_containing_extension("b.Nothing", 110) == []
    assert known.extension_numbers("b.Nothing") is None


def test_a_missing_import_leaves_out_only_the_files_that_need_it(make_service_file) -> None:
    whole, broken = make_service_file("whole.v1"), make_service_file("broken.v1", dependency=["gone.proto"])
    files = {file.name: file.SerializeToString() for file in (broken, whole)}
    known = resolve(["broken.v1.Service", "whole.v1.Service"], files)
    assert list(known.methods) == ["whole.v1.Service/Get"]
    assert known.services == ("broken.v1.Service", "whole.v1.Service")
    assert any("gone.proto" in fault for fault in known.faults)


def test_imports_in_a_circle_are_reported_and_the_rest_is_known(make_service_file) -> None:
    circle = [
        make_service_file("a", dependency=["b.proto"]),
        make_service_file("b", dependency=["a.proto"]),
        make_service_file("c"),
    ]
    known = resolve(["a.Service", "c.Service"], {file.name: file.SerializeToString() for file in circle})
    assert list(known.methods) == ["c.Service/Get"]
    assert any("circle" in fault for fault in known.faults)


def test_two_files_that_declare_the_same_are_reported_and_one_is_used(make_service_file) -> None:
    first, second = make_service_file("same.v1"), make_service_file("same.v1")
    second.name = "again.proto"
    known = resolve(["same.v1.Service"], {file.name: file.SerializeToString() for file in (first, second)})
    assert "same.v1.Service/Get" in known.methods
    assert any("duplicate" in fault for fault in known.faults)


def test_two_sets_may_declare_the_same_differently(make_service_file) -> None:
    for method in ("Get", "Put"):
        file = make_service_file("same.v1", method)
        assert list(resolve(["same.v1.Service"], {file.name: file.SerializeToString()}).methods) == [
            f"same.v1.Service/{method}"
        ]


def test_what_is_no_name_of_a_service_is_not_listed() -> None:
    known = resolve(["ok.Service", "", "../etc", "a b", "x" * 600, "<script>"], {})
    assert known.services == ("ok.Service",)
    assert known.methods == {}


def test_faults_are_bounded() -> None:
    known = resolve([f"a.S{i}" for i in range(10 * FAULTS_MAX)], {})
    assert len(known.faults) == FAULTS_MAX


def test_mutated_files_are_never_more_than_a_fault() -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    outcomes = {"refused": 0, "faulty": 0, "resolved": 0}
    for _ in range(2_000):
        mutated = bytearray(PAYMENT.serialized_pb)
        for _ in range(rng.randint(1, 4)):
            mutated[rng.randrange(len(mutated))] = rng.randrange(256)
        try:
            name, _ = file_imports(bytes(mutated))
        except ValueError:
            outcomes["refused"] += 1
            continue
        known = resolve([PAYMENTS], {TIMESTAMP.name: TIMESTAMP.serialized_pb, name: bytes(mutated)})
        outcomes["faulty" if known.faults else "resolved"] += 1
        known.file_containing_symbol(PAYMENTS)
    print(outcomes)
    assert all(outcomes.values())
