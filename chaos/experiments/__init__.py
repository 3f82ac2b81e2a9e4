"""Experiments: turn one knob, say first what theory expects, measure, and say what to choose.

Each is a value of `Experiment` in a module of its own; `catalogue` lists them, `run` runs one on real
processes and leaves a page with one picture.
"""
