"""The plain mean of all gradients, as a gradient sync strategy for orch."""
