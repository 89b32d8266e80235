"""From a configuration to a finished run: losses, optimiser, steps, loop, checkpoints."""
