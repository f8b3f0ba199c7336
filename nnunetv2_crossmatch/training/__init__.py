"""nnU-Net's trainer, semi-supervised, durable and parallel: may import learning, methods, data and below."""
