"""The narrated tour: four acts, each stating a promise, breaking something, and checking the promise."""

from chaos.demo.tour import run_demo

__all__ = ["run_demo"]
