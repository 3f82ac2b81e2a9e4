"""Keyed calls: at most one effect for each idempotency key, and the same answer for all who send it.

    caller --+                          +-- look up -- replay
    caller --+-- flight (one a key) ----+-- admission -- claim -- work -- settle
    caller --+                          +-- somebody else has it -- wait, or abort

A `caller` takes one call's request and owes it one answer. All callers of one key share a `flight`, which
asks the store what is known, and has the request carried (`work`) if the key is its own. `keys` holds the
flights of this relay and its leases.
"""
