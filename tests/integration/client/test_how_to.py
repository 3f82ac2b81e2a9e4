"""The examples of the how-to page run, in their order, against a real service."""

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import grpc

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "policies-in-python.md"


async def test_the_examples_do_what_the_page_says(downstream) -> None:
    await downstream.set_faults(
        {"failure": {"code": 14}, "maxStrikes": 1, "methods": ["downstream.v1.PaymentService/Charge"]},
        {"failure": {"code": 14}, "maxStrikes": 2, "methods": ["downstream.v1.PaymentService/ListCharges"]},
    )
    names: dict[str, Any] = {"TARGET": downstream.target}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        code = compile(block, str(PAGE), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        if inspect.isawaitable(running := eval(code, names)):  # noqa: S307 (our own page)
            await running
    assert names["reply"].charge.idempotency_key == "order-1"
    assert names["count"] == 1
    assert [line.split(",")[0] for line in names["retries"]] == [
        f"downstream.v1.PaymentService/ListCharges: attempt {number} failed" for number in (1, 2)
    ]
    assert (names["outcome"], len(names["tries"])) == ("done", 3)
    assert names["told"] == (grpc.StatusCode.UNKNOWN, "OUTCOME_UNKNOWN", "unknown")
    await names["channel"].close()
