"""The full names of the services that the relay answers itself."""

HEALTH = "grpc.health.v1.Health"
REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"
REFLECTION_V1ALPHA = "grpc.reflection.v1alpha.ServerReflection"
RELAY = "relay.v1.RelayService"
ADMIN = "relay.v1.AdminService"
JOBS = "relay.v1.JobService"
DEAD_LETTERS = "relay.v1.DeadLetterService"

FORWARDED_SERVICES = frozenset({HEALTH, REFLECTION_V1, REFLECTION_V1ALPHA, JOBS})
"""What the data plane hands to the control plane's private address; without a store JobService is not there
and so UNIMPLEMENTED."""

PUBLIC_SERVICES = FORWARDED_SERVICES | {RELAY}
"""What the relay offers at its public address besides its upstreams' services; an upstream's service
of the same name cannot be reached through the relay and is never shown."""
