"""Training: from shards and a start to weights, exactly, whatever happens on the way."""
