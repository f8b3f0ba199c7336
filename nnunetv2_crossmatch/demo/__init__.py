"""The whole way on generated volumes, in minutes on a CPU: may import report and what it may."""
