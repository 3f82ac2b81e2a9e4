"""An answer comes back from a store as it went in."""

import pytest
from hypothesis import given
from hypothesis import strategies as some

from relay_service.core.status import Code
from relay_service.idempotency.answer import VERSION, Answer, UnreadableAnswerError

FIELDS = some.lists(some.tuples(some.binary(max_size=40), some.binary(max_size=80)), max_size=5).map(tuple)
ANSWERS = some.builds(
    Answer,
    code=some.sampled_from(Code),
    message=some.text(max_size=60),
    headers=some.none() | FIELDS,
    body=some.binary(max_size=300),
    trailers=FIELDS,
)


@given(ANSWERS)
def test_an_answer_is_the_same_after_the_store(answer: Answer) -> None:
    assert Answer.decode(answer.encode()) == answer


@given(ANSWERS, some.data())
def test_an_answer_that_is_cut_short_is_never_read_as_another(answer: Answer, data: some.DataObject) -> None:
    encoded = answer.encode()
    with pytest.raises(UnreadableAnswerError):
        Answer.decode(encoded[: data.draw(some.integers(0, len(encoded) - 1))])


def test_the_answer_of_a_newer_relay_is_not_guessed_at() -> None:
    encoded = Answer(Code.OK, "", None, b"", ()).encode()
    with pytest.raises(UnreadableAnswerError, match="version"):
        Answer.decode(bytes((VERSION + 1,)) + encoded[1:])
