"""The three steps behind ``fastich.pack``: plan (headers only), shards (pixels), and the pool that runs both."""
