"""Durable jobs and dead letters: accepted once committed, carried like a call, never dropped silently."""
