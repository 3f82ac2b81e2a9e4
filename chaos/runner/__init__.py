"""Running scenarios: one in this process (`run_scenario`), or many side by side (`chaos.runner.matrix`)."""

from chaos.runner.plan import Form, RunConfig, RunPlan
from chaos.runner.run import RunFailedError, RunResult, run_scenario

__all__ = ["Form", "RunConfig", "RunFailedError", "RunPlan", "RunResult", "run_scenario"]
