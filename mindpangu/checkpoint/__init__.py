"""Floor 0: weights on disk. safetensors only; no pickle is ever loaded."""
