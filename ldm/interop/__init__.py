"""Weights in other projects' formats, both ways."""
