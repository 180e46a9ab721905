"""Floor 0: tokenizers of the two text towers."""
