"""Around the pipeline: a concept put into it and taken out, the arguments of a call."""
