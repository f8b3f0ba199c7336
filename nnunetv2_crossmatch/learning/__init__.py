"""How a network learns from an unlabeled image, in pure torch: may import errors, folders and nothing of nnunetv2."""
