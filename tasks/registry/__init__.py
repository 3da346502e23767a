"""The record that MLflow keeps: runs, versions of models, what they came from, and pulling them."""
