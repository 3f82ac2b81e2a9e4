"""Spans, counters and log lines of the relay: the only part of it that imports OpenTelemetry.

`observer.Telemetry` is what the rest of the relay is given; it implements `relay_service.ports.Observer`.
"""
