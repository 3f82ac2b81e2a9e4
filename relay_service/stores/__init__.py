"""Where keys, jobs and dead letters are kept: one interface, one conformance suite, several engines."""
