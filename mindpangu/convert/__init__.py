"""Other people's checkpoints to model folders, and back."""
