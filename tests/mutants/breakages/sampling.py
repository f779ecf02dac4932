"""Breakages of what works at sampling over any concept."""

from .rows import of

DCI = of(
    "eqdiff/sampling/dci.py",
    "test_dci",
    (
        "the second picture is drawn to the end",
        "if float(t) / total <= 1 - self.option.share:",
        "if float(t) / total < 0:",
        "both_pictures_are_drawn_in_the_first_share_of_the_schedule "
        "share_0_is_plain_sampling_bit_for_bit",
    ),
    (
        "both pictures start from the same noise",
        'own = [seed_of(seed, "dci", 0) for seed in drawing.seeds]',
        "own = list(drawing.seeds)",
        "the_second_picture_is_a_plain_run_of_its_own_prompt",
    ),
    (
        "the second picture has no guidance",
        "eps_a = u + self.pipe.guidance_scale * (eps_a - u)",
        "eps_a = eps_a + 0 * u",
        "the_second_picture_is_a_plain_run_of_its_own_prompt "
        "shared_guidance_takes_the_first_pictures_unconditional_half",
    ),
    (
        "the second picture attends to the photo by way of the shared half",
        'self.own = bool(drawing.attending) and drawing.reference_for == "both"',
        "self.own = False",
        "the_second_picture_does_not_attend_to_the_photo",
    ),
    (
        "the second picture is lent to as well",
        "return torch.cat([o_s[: c.start], mixed, o_s[c.stop :]])",
        "return torch.cat([o_s[: c.start], mixed, mixed, o_s[a.stop :]])",
        "the_second_picture_is_a_plain_run_of_its_own_prompt",
    ),
    (
        "the first picture is lent where the subject is",
        "mixed = (g * o_c + (1 - g) * o_a)",
        "mixed = ((1 - g) * o_c + g * o_a)",
        "a_gate_that_lends_nothing_is_plain_sampling",
    ),
    (
        "the gate of the release at any size",
        'return GATE_SCALE * cells / CELLS if kind == "level" else GATE_SCALE',
        "return GATE_SCALE",
        "each_level_has_stable_diffusions_gates_at_any_size",
    ),
    (
        "lambda pushes the other way",
        "torch.sigmoid(p_c - strength * p_a)",
        "torch.sigmoid(p_c + strength * p_a)",
        "raising_lambda_lowers_the_gate_at_every_cell",
    ),
    (
        "attention is not sharpened",
        "sharp = (SHARPNESS * probs)",
        "sharp = (1.0 * probs)",
        "a_cells_weight_is_what_the_word_gets_of_the_prompts_own_tokens",
    ),
    (
        "start and padding count among the content",
        "content = (ids == tokenizer.eos_token_id).int().cumsum(1) == 0",
        "content = ids >= 0",
        "columns_are_found_by_ids_behind_words_of_several_pieces",
    ),
    (
        "the noun's other places count too",
        "columns = find_columns(read, [model.reader.placeholder_id, *pieces]) & ~marks",
        "columns = find_columns(read, pieces)",
        "columns_are_found_by_ids_behind_words_of_several_pieces",
    ),
    (
        "images of a batch lend one another",
        "a = slice(c.stop, c.stop + count)",
        "a = slice(c.stop + count - 1, c.stop + count)",
        "two_images_in_a_batch_are_what_they_are_alone",
    ),
)


MATCHING = of(
    "eqdiff/sampling/matching.py",
    "test_dreammatcher",
    (
        "matches the other way round",
        "pairs.append((cosines.argmax(1), cosines.argmax(0)))",
        "pairs.append((cosines.argmax(0), cosines.argmax(1)))",
        "a_rolled_picture_is_found_where_it_went",
    ),
    (
        "a match at the limit counts",
        "sqrt() < limit[:, None]",
        "sqrt() <= limit[:, None]",
        "a_match_counts_only_if_it_comes_back_nearer_than_the_limit "
        "limit_0_is_plain_sampling_bit_for_bit",
    ),
    (
        "lines are as long as columns",
        "along = back % width - start % width",
        "along = back - start",
        "a_match_counts_only_if_it_comes_back_nearer_than_the_limit",
    ),
    (
        "the last axes, not the first",
        "eigenvectors[..., -axes:]",
        "eigenvectors[..., :axes]",
        "principal_axes_keep_the_distances_and_do_not_change_from_run_to_run",
    ),
    (
        "values are not moved",
        "moved = v_x.gather(1, m[..., None].expand(-1, -1, v_x.shape[-1]))",
        "moved = v_x",
        "a_rolled_picture_is_found_where_it_went the_gather_is_a_warp_by_the_flow",
    ),
)


INVERSION = of(
    "eqdiff/sampling/inversion.py",
    "test_dreammatcher",
    (
        "inversion does not know the noise that it has put in",
        "x_0 = (z - (1 - here).sqrt() * eps) / here.sqrt()",
        "x_0 = z / here.sqrt()",
        "inversion_goes_the_way_of_ddim_backwards",
    ),
    (
        "velocity taken for noise",
        'if kind == "v_prediction":',
        'if kind == "velocity":',
        "inversion_goes_the_way_of_ddim_backwards",
    ),
)


GUIDANCE = of(
    "eqdiff/sampling/guidance.py",
    "test_dreammatcher",
    (
        "guidance with the printed sign",
        "return (1 - alpha_bar).sqrt() * gradient.float()",
        "return -(1 - alpha_bar).sqrt() * gradient.float()",
        "a_guided_prediction_is_nearer_to_the_photo_and_the_printed_sign_farther "
        "guidance_pulls_the_picture_to_the_photo_where_they_match",
    ),
    (
        "guidance looks at the whole picture",
        "total = (weight * (wanted - x_0).square())",
        "total = ((wanted - x_0).square())",
        "guidance_pulls_the_picture_to_the_photo_where_they_match",
    ),
)


PHOTO = of(
    "eqdiff/sampling/photo.py",
    "test_dreammatcher",
    (
        "the photo's stream is computed for every picture",
        "streams[key] = ReferenceStream(latents, drawing.cache_gb)",
        "streams[key] = ReferenceStream(latents, 0.0)",
        "the_photos_stream_is_computed_once_a_subject",
    ),
    (
        "the photo is read under its own text in both halves",
        'prompts = ["", carried.concept.recipe.reference_prompt]',
        "prompts = [carried.concept.recipe.reference_prompt] * 2",
        "a_picture_that_is_the_photo_stays_as_it_is",
    ),
    (
        "always the first photo",
        "self.number = carried.chosen(drawing.photos)[0]",
        "self.number = 0",
        "another_photo_gives_another_picture_and_so_does_another_size",
    ),
)


DREAMMATCHER = of(
    "eqdiff/sampling/dreammatcher.py",
    "test_dreammatcher",
    (
        "masks that are off stay on",
        "if not self.option.masks:",
        "if False:",
        "without_masks_every_cell_takes_the_value_that_matches_it",
    ),
    (
        "matching from the first step on, whatever start says",
        "if done + 1 < first:",
        "if done < 0:",
        "it_begins_after_the_first_share_of_the_steps",
    ),
    (
        "each image is matched with the first one's features",
        "y = [picture[name][-self.rows :] for name in FEATURES]",
        "y = [picture[n][:1].expand_as(picture[n])[-self.rows :] for n in FEATURES]",
        "two_images_in_a_batch_are_what_they_are_alone a_picture_that_is_the_photo_stays_as_it_is",
    ),
    (
        "keys of the photo too",
        "v = torch.cat([v_w, v[rows:]])",
        "k = v = torch.cat([v_w, v[rows:]])",
        "queries_and_keys_reach_the_attention_untouched",
    ),
    (
        "the mask is the whole prompt's",
        "weights = self.slots.to(q.device, q.dtype)",
        "weights = torch.ones_like(self.slots).to(q.device, q.dtype)",
        "the_mask_is_the_slots_behind_words_of_several_pieces",
    ),
    (
        "the mask is the unconditional half's",
        "c = slice(self.rows - self.count, self.rows)",
        "c = slice(0, self.count)",
        "the_mask_is_the_slots_behind_words_of_several_pieces",
    ),
)


LAYERS = of(
    "eqdiff/sampling/layers.py",
    "test_dreammatcher",
    (
        "beside RRA without a word",
        "require(not attending & set(sites),",
        "require(True,",
        "with_rra_in_the_same_layers_it_is_refused",
    ),
    (
        "without a photo it goes on",
        "        len(carried.concept.references.latents),\n",
        "        True,\n",
        "without_a_photo_it_is_refused",
    ),
)


FREECUSTOM = of(
    "eqdiff/sampling/freecustom.py",
    "test_freecustom",
    (
        "the weight is on the picture's own cells",
        "k[:, :, own:, d] = weight * d**0.5",
        "k[:, :, :own, d] = weight * d**0.5",
        "it_is_attention_over_both_with_a_weight_on_the_photos_cells",
    ),
    (
        "the weight depends on the width of a head",
        "d] = weight * d**0.5",
        "d] = weight",
        "it_is_attention_over_both_with_a_weight_on_the_photos_cells",
    ),
    (
        "the photos' background is seen too",
        ".index_select(1, inside.to(features.device))",
        "",
        "only_the_subjects_cells_of_a_photo_count "
        "photos_without_a_subject_leave_plain_sampling_bit_for_bit",
    ),
    (
        "both halves see the photos, whatever is said",
        "looking = slice(last - self.count * halves, last)",
        "looking, halves = slice(0, last), 1",
        "the_halves_that_are_named_see_the_photos",
    ),
    (
        "values of the photo through its keys' projection",
        "for project in (layer.to_k, layer.to_v)",
        "for project in (layer.to_k, layer.to_k)",
        "values_of_the_photo_go_through_the_layers_own_projection",
    ),
    (
        "photos are looked at anew for every picture",
        "                cache_gb=drawing.cache_gb,\n",
        "                cache_gb=0.0,\n",
        "photos_are_looked_at_once_a_subject_and_several_at_a_time",
    ),
)

SAMPLING = [
    *DCI,
    *MATCHING,
    *INVERSION,
    *GUIDANCE,
    *PHOTO,
    *DREAMMATCHER,
    *LAYERS,
    *FREECUSTOM,
]
