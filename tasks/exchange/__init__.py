"""Weights from elsewhere, as checkpoints of this pipeline."""
