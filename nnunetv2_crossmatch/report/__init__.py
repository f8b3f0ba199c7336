"""Report with scores, pictures and training curves in one HTML file; may import ``evaluation`` and its imports."""
