"""What can be broken on purpose, as data (`kinds`), and the hands that break and mend it (`inject`)."""

from chaos.faults.network import NetworkFault, Pulses, network_fault, pulsing

__all__ = ["NetworkFault", "Pulses", "network_fault", "pulsing"]
