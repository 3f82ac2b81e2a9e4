"""The same seed, traffic and faults three ways: the relay, the relay without its patterns, and Envoy."""
