"""CrossMatch semi-supervised segmentation as an extension of nnU-Net v2. Importing it imports nothing else."""

__version__ = "0.1.0"
