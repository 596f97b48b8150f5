"""Nouns: frozen values, ids, errors, and one ABC per hook. Standard library only; import what you need by module."""
