"""The concept file: written and read, checked, compressed, exported, described by its card."""
