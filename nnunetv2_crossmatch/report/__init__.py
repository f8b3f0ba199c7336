"""Scores, pictures and training curves in one HTML file: may import evaluation and what it may."""
