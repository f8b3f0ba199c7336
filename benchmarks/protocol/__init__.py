"""A published experiment as one command, ``python -m benchmarks.protocol``; may import the whole installed package."""
