"""Evaluation of segmentations with the measures of the LA and ACDC literature; may import ``training`` and below."""
