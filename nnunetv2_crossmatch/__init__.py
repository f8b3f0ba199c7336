"""CrossMatch semi-supervised segmentation as an extension of nnU-Net v2. Importing this package imports nothing else."""

__version__ = "0.1.0"
