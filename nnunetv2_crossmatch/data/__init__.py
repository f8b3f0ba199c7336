"""From raw unlabeled images to batches of views: may import errors and folders, and knows no method."""
