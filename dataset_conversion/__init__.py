"""Converters from the published data sets' own layouts to nnU-Net's, labeled and unlabeled cases apart."""
