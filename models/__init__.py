"""The nets, as MindSpore Cells. Parameter names follow the released checkpoints (ldm, OpenCLIP)."""
