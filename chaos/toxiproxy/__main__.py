"""`python -m chaos.toxiproxy`: the verbs of `relay-chaos toxiproxy`."""

from chaos.toxiproxy.cli import main

main()
