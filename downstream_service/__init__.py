"""A payment service that fails on purpose, to practise on."""
