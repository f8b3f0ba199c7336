"""Preprocessing of raw unlabeled images and loading of batches; imports errors and folders only, no method."""
