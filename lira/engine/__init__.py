"""Running: models in stacks, each stack a compiled program, on the device at hand. Nothing of attacks."""
