"""Demo of all steps on generated volumes, in minutes on a CPU; may import ``report`` and its imports."""
