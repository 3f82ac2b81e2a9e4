"""Jobs joined and taken apart on the wire format, against protobuf itself."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos.downstream.v1 import payment_pb2
from relay_service.core.evidence import Evidence
from relay_service.core.job_policy import BatchItems, BatchPolicy, BatchResults
from relay_service.core.status import Code
from relay_service.jobs.batching import Item, MalformedBatchError, join, split

ITEMS = BatchItems(field=1, request_field=1, key_field=2)
RESULTS = BatchResults(field=1, code_field=1, message_field=2, answer_field=3, answer_as=1)
RETRYABLE = frozenset({Code.UNAVAILABLE})


@given(st.lists(st.tuples(st.text(max_size=300), st.integers(0, 2**62), st.binary(max_size=64)), max_size=20))
def test_a_joined_request_is_what_protobuf_would_have_written(wanted: list[tuple[str, int, bytes]]) -> None:
    charges = [payment_pb2.ChargeRequest(account=name, amount_minor=amount) for name, amount, _ in wanted]
    keys = [key.hex().encode() for _, _, key in wanted]
    items = [Item(charge.SerializeToString(), key) for charge, key in zip(charges, keys, strict=True)]
    batch = payment_pb2.ChargeBatchRequest.FromString(join(items, ITEMS))
    assert [item.charge for item in batch.items] == charges
    assert [item.idempotency_key.encode() for item in batch.items] == keys


@given(st.lists(st.sampled_from([0, 3, 14, 8, 4]), max_size=30))
def test_each_result_is_its_items_own_end(codes: list[int]) -> None:
    response = payment_pb2.ChargeBatchResponse()
    for number, code in enumerate(codes):
        result = response.results.add(code=code, message=f"m{number}")
        if code == 0:
            result.charge.sequence = number
            result.charge.account = f"a{number}"
    ends = split(response.SerializeToString(), len(codes), RESULTS, RETRYABLE)
    assert [int(end.verdict.code) for end in ends] == codes
    for number, end in enumerate(ends):
        match codes[number]:
            case 0:
                answer = payment_pb2.ChargeResponse.FromString(end.answer)
                assert answer.charge == response.results[number].charge
            case 3:
                assert end.verdict.evidence is Evidence.DEFINITE
            case 14:
                assert (end.verdict.evidence, end.verdict.message) == (Evidence.REFUSED, f"m{number}")
            case _:
                assert end.verdict.evidence is Evidence.AMBIGUOUS


@given(st.binary(max_size=200), st.integers(1, 5))
def test_bytes_that_are_no_such_response_are_told_and_nothing_else_is_raised(data: bytes, count: int) -> None:
    with contextlib.suppress(MalformedBatchError):
        assert len(split(data, count, RESULTS, RETRYABLE)) == count


def test_a_missing_result_is_told() -> None:
    response = payment_pb2.ChargeBatchResponse()
    response.results.add()
    with pytest.raises(MalformedBatchError, match="1 results came for 2 items"):
        split(response.SerializeToString(), 2, RESULTS, RETRYABLE)


def test_an_item_can_be_the_request_and_a_result_the_answer() -> None:
    joined = join([Item(b"\x08\x01", b"unused"), Item(b"", b"unused")], BatchItems(field=7))
    assert joined == b"\x3a\x02\x08\x01\x3a\x00"
    ends = split(joined, 2, BatchResults(field=7), RETRYABLE)
    assert [end.answer for end in ends] == [b"\x08\x01", b""]


def test_each_failure_halves_the_batches_a_job_may_be_part_of() -> None:
    assert [BatchPolicy("S/M", max_size=10).share(failures) for failures in range(6)] == [10, 5, 2, 1, 1, 1]
