"""Prediction of unlabeled cases with a trained model, and what is made of it; may import ``training`` and below."""
