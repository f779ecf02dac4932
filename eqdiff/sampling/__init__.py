"""Everything around the pipeline."""
