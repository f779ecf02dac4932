"""Scores of drawn pictures."""
