"""Run the command line: ``python -m downstream_service``."""

from downstream_service.cli import main

main()
