"""Masks for photos that have none."""
