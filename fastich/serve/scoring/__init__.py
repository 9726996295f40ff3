"""From stored objects to decisions: slices are scored as they arrive, studies judged once they are complete."""
