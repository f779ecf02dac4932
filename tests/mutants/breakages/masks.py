"""Breakages of the masks that are made."""

from .rows import of

MASKS = [
    *of(
        "eqdiff/masks/salient.py",
        "test_salient",
        (
            "any network makes masks",
            "if hashlib.sha256(content).hexdigest() != SHA256:",
            "if not content:",
            "another_network_is_refused_and_so_is_none",
        ),
        (
            "the network looks at the whole photo, whatever the box",
            "_with_margin(box or (0, 0, width, height), width, height)",
            "_with_margin((0, 0, width, height), width, height)",
            "the_network_finds_what_stands_out_and_looks_only_where_it_is_told",
        ),
        (
            "a settled outline is drawn anew",
            "labels[(seen > 0.5) & (shared > 0.5)] = cv2.GC_FGD",
            "labels[(seen > 0.5) & (shared > 0.5)] = cv2.GC_PR_FGD",
            "where_network_and_photos_say_the_same_the_outline_is_the_networks",
        ),
    ),
    *of(
        "eqdiff/masks/agreement.py",
        "test_salient",
        (
            "colours do not count",
            "field = priors[i] + np.log(ratio)[code] + likeness_odds(partners, share)",
            "field = priors[i] + likeness_odds(partners, share)",
            "what_does_not_recur_is_dropped_and_what_recurs_is_completed",
        ),
        (
            "a mask is replaced by the least gain",
            "near[best] > near[0] + CLEARLY",
            "near[best] > near[0]",
            "a_mask_is_not_replaced_by_one_that_agrees_a_little_better",
        ),
        (
            "a photo is its own witness",
            "if j != i and (known[j] or not any(known))] or [i]",
            "if known[j] or not any(known)] or [i]",
            "what_does_not_recur_is_dropped_and_what_recurs_is_completed",
        ),
    ),
    *of(
        "eqdiff/data/outliers.py",
        "test_salient",
        (
            "coverage is never out of line",
            "if not usual / TIMES <= coverage <= usual * TIMES:",
            "if coverage < 0:",
            "a_mask_out_of_line_is_named_in_one_line_and_framed_in_red",
        ),
        (
            "a mask as displayed is suspected too",
            "> affinity(colours[i], common) + CLEARLY",
            "> affinity(colours[i], common) - CLEARLY",
            "a_mask_made_from_the_stored_raster_is_guessed",
        ),
    ),
]
