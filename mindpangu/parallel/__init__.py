"""How a training is spread over devices, on paper: pipeline schedules, cuts, what a device must hold."""
