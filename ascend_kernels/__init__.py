"""Ascend only: kernels and what they need. Imports nothing of ours. Nothing here has been run on an NPU."""
