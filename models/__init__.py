"""Floor 2: the nets, as MindSpore Cells. Parameter names follow the released checkpoints (ldm, OpenCLIP)."""
