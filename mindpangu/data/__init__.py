"""Pictures, captions and batches. No nets."""
