"""From sources to documents: download, clean, deduplicate, split."""
