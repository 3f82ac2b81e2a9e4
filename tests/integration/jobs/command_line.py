"""Runs verbs of the command in a process that has seen no messages but the relay's own, one JSON line each.

A process for every command would pay for its imports every time.
"""

import json
import sys

from typer.testing import CliRunner

from relay_service.cli.app import app

for line in sys.stdin:
    asked = json.loads(line)
    done = CliRunner().invoke(app, asked["arguments"], input=asked["stdin"], env=asked["environment"])
    crash = repr(done.exception) if done.exception and not isinstance(done.exception, SystemExit) else ""
    told = {"exit_code": done.exit_code, "out": done.stdout, "err": done.stderr, "crash": crash}
    print(json.dumps(told), flush=True)
