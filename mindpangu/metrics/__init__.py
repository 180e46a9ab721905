"""Features → statistics → metric. The judge's features are not ours: an ImageNet net of another library."""
