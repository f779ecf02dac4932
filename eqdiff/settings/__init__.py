"""Every setting, with its unit, range and default. Nothing heavy is imported here."""
