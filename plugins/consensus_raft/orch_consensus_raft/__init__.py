"""Raft for orch: one small document, replicated by the coordinators themselves. See README.md; start with `node`."""
