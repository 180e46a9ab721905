"""Weights on disk. safetensors only; no pickle is ever loaded."""
