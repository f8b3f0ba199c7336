"""What is learned from an unlabeled image, a file per published method: may import errors, folders and learning."""
