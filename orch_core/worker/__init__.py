"""What a script imports, and the keeper beside it."""
