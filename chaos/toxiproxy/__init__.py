"""Toxiproxy, whichever there is: a client for its API, a launcher that finds one, and an embedded one."""
