"""The stages of ``benchmarks/gpu.py``, each a module that is run in a process of its own."""
