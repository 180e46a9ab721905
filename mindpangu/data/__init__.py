"""Floor 0: pictures, captions and batches. No nets."""
