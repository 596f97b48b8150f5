"""The public kit for tests: fakes, conformance suites and the simulator. May import every room; none imports it."""
