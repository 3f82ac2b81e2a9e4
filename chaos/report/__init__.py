"""A run as one HTML file that explains itself: no network, no script; light, dark and on paper."""

from chaos.report.build import Measure, Report, Section, render, write

__all__ = ["Measure", "Report", "Section", "render", "write"]
