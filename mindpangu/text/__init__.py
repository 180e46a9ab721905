"""Tokenizers of the two text encoders."""
