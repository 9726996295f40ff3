"""Networks only: what maps images to logits. Training and serving them is elsewhere."""
