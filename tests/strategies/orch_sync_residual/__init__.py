"""A strategy that uses the whole contract. Only for orch's own tests: put `tests/strategies` on PYTHONPATH."""
