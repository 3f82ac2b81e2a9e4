"""The ``relay`` command: one module for each verb, `app` joins them."""

from relay_service.cli.app import main

__all__ = ["main"]
