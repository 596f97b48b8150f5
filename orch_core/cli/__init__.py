"""The composition root: one file per verb."""
