"""Measurements: what a step, the loading, the preprocessing and a method cost and bring; nothing here is installed."""
