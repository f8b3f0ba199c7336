"""Judgement of predictions without a reference; may import ``prediction``, ``report`` and their imports."""
