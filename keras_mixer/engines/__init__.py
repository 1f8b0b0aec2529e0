"""Where the arithmetic happens: the step, the optimizer, the devices."""
