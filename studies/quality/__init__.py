"""Measures of quality, one command each: `python -m studies.quality.masks`.

Their figures lie in studies/results/.

toybox_quality   the toybox's base and instruments, and customization on it
masks            masks that were made without a model, against the true ones
described        whether a class word that says all that words can say helps
compress         what a smaller concept file loses
shortcuts        what cheaper sampling and training lose
two_subjects     what a second subject's weights do to the first
grid             what the judge names in the pictures of a drawing run
subjects         what they share
"""
