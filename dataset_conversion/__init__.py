"""Converters from the layouts of published data sets to raw nnU-Net data sets with labeled and unlabeled cases."""
