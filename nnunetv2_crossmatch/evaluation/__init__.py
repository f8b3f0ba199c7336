"""How good segmentations are, as the LA and ACDC literature computes it: may import training and below."""
