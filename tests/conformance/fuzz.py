"""The histories of `test_events_in_any_order`, steered by a fuzzer: ``python -m tests.conformance.fuzz``.

The fuzzer (atheris, libFuzzer inside) makes up bytes; they are taken for the draws of a random generator, so
what it mutates are the decisions: which frames come, cut where, spoiled how, and what happens in between.
What it finds is written to ``crash-…`` in the output folder; give such a file as an argument to see it again.
"""

import argparse
import asyncio
import logging
import random
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["relay_service"]):
    from tests.conformance.mutation import recordings
    from tests.conformance.test_events_in_any_order import (
        METHOD,
        a_callers_history,
        an_upstreams_history,
        answers,
    )

SECONDS = 300
INPUT_BYTES_MAX = 4_096
MEMORY_MIB_MAX = 1_024
ONE_INPUT_S_MAX = 20


class Drawn(random.Random):
    """Draws what the fuzzer's bytes say, and zeros when they are used up."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self._data = data
        self._at = 0

    def getrandbits(self, k: int) -> int:
        """The next ``k`` bits."""
        size = (k + 7) // 8
        taken = self._data[self._at : self._at + size]
        self._at += size
        return int.from_bytes(taken, "little") & ((1 << k) - 1)

    def random(self) -> float:
        """From 0 up to 1; two bytes are fine enough for the choices made here."""
        return self.getrandbits(16) / 65_536


class RaisingHandler(logging.Handler):
    """An error that was caught and logged is one that was not expected."""

    def emit(self, record: logging.LogRecord) -> None:
        """Raise it."""
        if record.exc_info and record.exc_info[1] is not None:
            raise record.exc_info[1]
        raise AssertionError(record.getMessage())


class Target:
    """One input is one history of each side."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(self._escaped)
        self._found: list[str] = []
        self._streams = recordings(METHOD)
        self._honest = answers(random.Random(0))

    def __call__(self, data: bytes) -> None:
        """Raises when anything went wrong."""
        self._loop.run_until_complete(self._histories(data))
        if self._found:
            raise AssertionError(self._found.pop())

    async def _histories(self, data: bytes) -> None:
        half = len(data) // 2
        await a_callers_history(Drawn(data[:half]), self._streams)
        await an_upstreams_history(Drawn(data[half:]), self._honest)

    def _escaped(self, _loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        self._found.append(str(context))


def main() -> None:
    """Fuzz for a while; does not return (libFuzzer ends the process, with 0 when nothing was found)."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=SECONDS)
    parser.add_argument("--out", type=Path, default=Path("out/fuzz"))
    parser.add_argument("inputs", nargs="*", type=Path, help="files to replay instead")
    arguments = parser.parse_args()
    corpus = arguments.out / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    handler = RaisingHandler(logging.ERROR)
    logging.getLogger("relay_service").addHandler(handler)
    flags = [
        f"-max_len={INPUT_BYTES_MAX}",
        "-len_control=0",
        f"-rss_limit_mb={MEMORY_MIB_MAX}",
        f"-timeout={ONE_INPUT_S_MAX}",
        f"-artifact_prefix={arguments.out}/",
        "-print_final_stats=1",
    ]
    what = [str(path) for path in arguments.inputs] or [f"-max_total_time={arguments.seconds}", str(corpus)]
    target = Target()
    atheris.Setup([sys.argv[0], *flags, *what], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
