"""Tokens: train a tokenizer, encode to shards, mix the sources, read any sample by its number."""
