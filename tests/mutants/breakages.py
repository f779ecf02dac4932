"""One-line breakages of the method, each with the tests that claim to notice: data for run.py.

`old` stands exactly once in `file`; `tests` are functions, all of whose parameters run.
"""

from typing import NamedTuple


class Mutant(NamedTuple):
    """A breakage: its name says what is wrong with the method once `old` is `new`."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def _of(file: str, test_file: str, *rows: tuple[str, str, str, str]) -> list[Mutant]:
    """Mutants of one file; a row is name, old, new and its tests, those of `test_file` by their names alone."""
    return [
        Mutant(
            name, file, old, new, tuple(t if "::" in t else f"tests/{test_file}.py::test_{t}" for t in tests.split())
        )
        for name, old, new, tests in rows
    ]


FREQUENCY = _of(
    "eqdiff/frequency.py",
    "test_frequency",
    (
        "bands are not complementary",
        "keep = ~pass_mask(*image.shape[-2:], filter.high_cutoff, filter.shape, image.device)",
        "keep = ~pass_mask(*image.shape[-2:], filter.high_cutoff + 1, filter.shape, image.device)",
        "complementary_bands_sum_to_the_image",
    ),
    (
        "cutoff off by one",
        "return u**2 + v**2 <= cutoff**2",
        "return u**2 + v**2 < cutoff**2",
        "cutoff_is_in_cycles_per_image_at_every_resolution",
    ),
    (
        "amplitude in place of the real part",
        "band = band.abs() if filter.rectify else band.real",
        "band = band.abs()",
        "complementary_bands_sum_to_the_image low_of_a_constant_is_the_constant_and_high_is_nothing",
    ),
    (
        "pass mask not shifted back",
        "* torch.fft.ifftshift(keep)",
        "* keep",
        "low_of_a_constant_is_the_constant_and_high_is_nothing",
    ),
    (
        "colours averaged before the filter",
        "channels = image if filter.colour else image.mean(-3, keepdim=True)",
        "channels = image.mean(-3, keepdim=True)",
        "low_keeps_the_colours_apart",
    ),
    (
        "one band for the whole batch",
        "rows = (bands == band).to(images.device)",
        "rows = (bands[:1] == band).expand(len(bands)).to(images.device)",
        "each_image_gets_its_own_band",
    ),
    (
        "band probabilities in the wrong order",
        "weights = torch.tensor(probs, ",
        "weights = torch.tensor(probs[::-1], ",
        "draws_follow_the_probabilities",
    ),
)

TOKENS = _of(
    "eqdiff/tokens.py",
    "test_tokens",
    (
        "S_ori is the mean, not the sum",
        "[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]",
        "[[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]",
        "low_and_high_are_the_rows_and_full_is_their_sum",
    ),
    (
        "S_LF and S_HF swapped",
        "[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]",
        "[[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]",
        "low_and_high_are_the_rows_and_full_is_their_sum",
    ),
    (
        "token rows detached",
        "return (share[:, :, None] * self.rows).sum(1)",
        "return (share[:, :, None] * self.rows.detach()).sum(1)",
        "training_the_rows_leaves_the_table_alone",
    ),
    (
        "slot one place late",
        "return ids == placeholder_id",
        "return ids.roll(1, 1) == placeholder_id",
        "slots_stand_where_the_placeholder_stands",
    ),
    (
        "vector added to the slot, not put there",
        "torch.where(slots[:, :, None], vectors.to(embedded.dtype)[:, None], embedded)",
        "torch.where(slots[:, :, None], vectors.to(embedded.dtype)[:, None] + embedded, embedded)",
        "injection_equals_a_row_of_a_resized_table",
    ),
    (
        "rows start at the sum of the word's tokens",
        ".float().mean(0)",
        ".float().sum(0)",
        "rows_start_at_the_scaled_mean_of_the_words_tokens",
    ),
)

MASKING = _of(
    "eqdiff/masking.py",
    "test_masking",
    (
        "noise outside the mask too",
        "return torch.where(mask > 0, torch.lerp(z0, z_t, mask.to(z0.dtype)), z0)",
        "return z_t",
        "outside_the_mask_the_latent_stays_bit_for_bit",
    ),
    (
        "noise inside the mask, and none of it where it should be",
        "torch.lerp(z0, z_t, mask.to(z0.dtype))",
        "torch.lerp(z_t, z0, mask.to(z0.dtype))",
        "a_mask_of_ones_is_plain_noising",
    ),
    (
        "loss not masked",
        "return (mask * error**2).sum((1, 2, 3)) / (prediction.shape[1] * mask.float().sum((1, 2, 3)))",
        "return (prediction.float() - target.float()).square().mean((1, 2, 3))",
        "loss_ignores_everything_outside_the_mask",
    ),
    (
        "loss summed over channels, as the release's",
        "/ (prediction.shape[1] * mask.float()",
        "/ (mask.float()",
        "loss_is_the_mean_over_the_mask_and_over_channels",
    ),
    (
        "loss divided by the picture's area, not the mask's",
        "mask.float().sum((1, 2, 3)))",
        "mask[0].numel())",
        "loss_is_the_mean_over_the_mask_and_over_channels",
    ),
    (
        "no dilation",
        "return F.max_pool2d(mask, 2 * radius + 1, stride=1, padding=radius)",
        "return mask",
        "official_dilation_makes_a_dot_21_cells_wide",
    ),
    (
        "forward process without roots",
        "(alpha_bar.sqrt() * z0 + (1 - alpha_bar).sqrt() * noise)",
        "(alpha_bar * z0 + (1 - alpha_bar) * noise)",
        "noise_is_that_of_the_scheduler",
    ),
    (
        "a thin subject vanishes from the latent mask",
        "torch.where(thin, share == most, share >= 0.5)",
        "(share >= 0.5)",
        "latent_mask_of_a_thin_subject_is_not_empty_and_that_of_none_is",
    ),
)

ATTENTION = _of(
    "eqdiff/attention.py",
    "test_attention",
    (
        "zero initialisation is not zero",
        "self.fuse.weight.zero_()",
        "self.fuse.weight.normal_(std=0.02)",
        "zero_gate_leaves_the_unet_bit_identical",
    ),
    (
        "clamp dead at its bounds",
        "passes = ((x >= 0) | (ctx.inward & (grad < 0))) & ((x <= 1) | (ctx.inward & (grad > 0)))",
        "passes = (x > 0) & (x < 1)",
        "clamp01_values_and_gradient_at_the_bounds gate_gradient_is_not_zero_at_the_zero_init",
    ),
    (
        "a gate below zero never comes back",
        "ctx.inward = inward",
        "ctx.inward = False",
        "a_token_below_zero_comes_back_with_the_inward_clamp_only",
    ),
    (
        "gradient of the gate cut",
        "clamp01(f_i[..., -1:], self.clamp)",
        "clamp01(f_i[..., -1:].detach(), self.clamp)",
        "gate_gradient_is_not_zero_at_the_zero_init",
    ),
    (
        "O_s before O_r in H_r",
        "torch.cat([o_r.reshape_as(own), own], dim=-1)",
        "torch.cat([own, o_r.reshape_as(own)], dim=-1)",
        "rra_is_eq_8_and_9_written_out",
    ),
    (
        "values of the reference through its keys' projection",
        "for x in (self.to_k_ref, self.to_v_ref))",
        "for x in (self.to_k_ref, self.to_k_ref))",
        "rra_is_eq_8_and_9_written_out",
    ),
    (
        "F_RA added, F_SA not taken back (Eq. 9)",
        "stock * (1 - m_f) + f_ra * m_f",
        "stock + f_ra * m_f",
        "rra_is_eq_8_and_9_written_out",
    ),
    (
        "RRA joined to the unprojected attention",
        "return f_sa if reference is None else self._add_reference(q, o_s, f_sa, attn.heads, reference)",
        "return f_sa if reference is None else self._add_reference(q, o_s, o_s, attn.heads, reference)",
        "zero_gate_leaves_the_unet_bit_identical rra_is_eq_8_and_9_written_out",
    ),
    (
        "reference projections share the frozen weights",
        "(copy.deepcopy(x).requires_grad_(True) for x in (attn.to_k, attn.to_v))",
        "(x.requires_grad_(True) for x in (attn.to_k, attn.to_v))",
        "projections_start_as_copies_that_do_not_share_memory",
    ),
    (
        "no RRA in the middle block",
        'layers: Iterable[str] = ("mid_block", "up_blocks")',
        'layers: Iterable[str] = ("up_blocks",)',
        "zero_gate_leaves_the_unet_bit_identical",
    ),
    (
        "Eq. 10 without the reference's mask",
        "v = torch.cat([v, extra.to(v.dtype).expand(*v.shape[:3], -1)], dim=-1)",
        "v = torch.cat([v, torch.ones_like(extra).to(v.dtype).expand(*v.shape[:3], -1)], dim=-1)",
        "fused_mass_equals_the_explicit_map_with_gradients",
    ),
    (
        "mask channel scales the softmax by the padded width",
        "scale=d**-0.5",
        "scale=width**-0.5",
        "fused_mass_equals_the_explicit_map_with_gradients",
    ),
    (
        "attention on the mask is one head's, not the mean",
        "mass.float().mean(1)[..., 0]",
        "mass.float()[:, 0, :, 0]",
        "rra_is_eq_8_and_9_written_out",
    ),
    (
        "start token gets a gradient",
        "if self.detach_start:",
        "if False:",
        "start_token_gets_no_gradient_through_keys_and_values",
    ),
    (
        "self-attention loses its first token's gradient",
        'detach_start and name.endswith(".attn2.processor")',
        "detach_start",
        "start_token_detach_is_for_cross_attention_only",
    ),
    (
        "the first samples look at the reference, whoever should",
        "return features, slice(self.first, self.first + samples)",
        "return features, slice(0, samples)",
        "the_samples_that_look_need_not_be_the_first",
    ),
)

ATTENTION_LOSS = _of(
    "eqdiff/attention_loss.py",
    "test_attention",
    (
        "Eq. 10 of the release over all queries",
        '(rho if form == "all" else m * rho) - m',
        "rho - m",
        "reference_loss_through_the_unet_equals_eq_10_on_the_explicit_maps",
    ),
    (
        "a small subject vanishes at a coarse level",
        "return ((mean >= mean.amax(1, keepdim=True).clamp(max=0.5)) & (mean > 0)).float()",
        "return (mean >= 0.5).float()",
        "a_small_subject_does_not_vanish_at_a_coarse_level",
    ),
    (
        "cross-attention map not divided by its maximum",
        "a / a.amax(1, keepdim=True).clamp_min(1e-8)",
        "a",
        "cross_attention_loss_by_hand",
    ),
    (
        "layers summed, not averaged",
        "if x.shape[1] == n]).mean(0) for n in sizes]",
        "if x.shape[1] == n]).sum(0) for n in sizes]",
        "reference_loss_averages_layers_then_resolutions",
    ),
)

REFERENCE = _of(
    "eqdiff/reference.py",
    "test_reference",
    (
        "reference clean at sampling where it should be noised",
        "if self._clean:",
        "if True:",
        "schedule_equals_a_live_capture_at_every_timestep",
    ),
    (
        "reference features at the wrong timestep",
        "z.repeat(len(self._texts), 1, 1, 1), step, texts)",
        "z.repeat(len(self._texts), 1, 1, 1), max(step - 2, 0), texts)",
        "schedule_equals_a_live_capture_at_every_timestep",
    ),
    (
        "gradient through the frozen reference",
        "@torch.no_grad()",
        "@torch.enable_grad()",
        "capture_leaves_the_unet_as_it_was_and_makes_no_graph",
    ),
    (
        "features from before the layer norm",
        'unet.get_submodule(site.removesuffix(".processor"))',
        'unet.get_submodule(site.removesuffix("attn1.processor") + "norm1")',
        "features_are_what_attn1_receives",
    ),
)

OBJECTIVE = _of(
    "eqdiff/objective.py",
    "test_objective",
    (
        "loss masking noises inside the mask alone",
        'noising = self.config.masking == "noise"',
        'noising = self.config.masking != "none"',
        "masked_noising_is_what_tells_noise_from_loss_masking",
    ),
    (
        "prior loss without its weight",
        'losses["prior"], weights["prior"] = error[n:].mean(), config.prior_loss_weight',
        'losses["prior"], weights["prior"] = error[n:].mean(), 1.0',
        "official_totals_are_a_quarter_of_the_releases",
    ),
    (
        "reference-attention loss without its weight",
        'weights["reference_attention"] = l_ra.mean(), config.ra_loss_weight',
        'weights["reference_attention"] = l_ra.mean(), 1.0',
        "official_totals_are_a_quarter_of_the_releases",
    ),
    (
        "noise predicted where the base predicts velocity",
        'if self.model.scheduler.config.prediction_type == "v_prediction":',
        "if False:",
        "tests/test_base.py::test_where_the_scheduler_says_so_the_target_is_the_velocity",
    ),
    (
        "reference noised to the target's timestep, whatever its own",
        "model.alphas_cumprod[batch.t_r])",
        "model.alphas_cumprod[batch.t[: len(batch.t_r)]])",
        "the_reference_has_its_own_noise_at_its_own_timestep_under_its_own_text",
    ),
    (
        "reference noised with the target's noise",
        "z_r = add_noise(batch.z_r, batch.noise_r,",
        "z_r = add_noise(batch.z_r, batch.noise[: len(batch.z_r)],",
        "the_reference_has_its_own_noise_at_its_own_timestep_under_its_own_text",
    ),
    (
        "reference read under the class images' caption",
        "text = self.reference_text.expand(len(z_r), -1, -1)",
        "text = self.class_text.expand(len(z_r), -1, -1)",
        "the_reference_has_its_own_noise_at_its_own_timestep_under_its_own_text",
    ),
    (
        "class images under the reference's caption",
        "text = torch.cat([text, self.class_text.expand(len(batch.z0) - n, -1, -1)])",
        "text = torch.cat([text, self.reference_text.expand(len(batch.z0) - n, -1, -1)])",
        "captions_are_the_subjects_with_its_band_then_the_class_images",
    ),
    (
        "every caption with S_ori, whatever the photo's band",
        "self.slots[batch.caption], batch.bands[:n])",
        "self.slots[batch.caption], torch.full_like(batch.bands[:n], 2))",
        "captions_are_the_subjects_with_its_band_then_the_class_images",
    ),
    (
        "the target's mask on the reference's attention (Eq. 10)",
        "            batch.mask_r,\n",
        "            batch.mask,\n",
        "eq_10_takes_the_references_mask_on_its_side_and_the_targets_on_its",
    ),
    (
        "the reference's mask as Eq. 10's target",
        "l_ra = reference_attention_loss(mass, batch.subject_mask,",
        "l_ra = reference_attention_loss(mass, batch.mask_r[:n],",
        "eq_10_takes_the_references_mask_on_its_side_and_the_targets_on_its",
    ),
)

LATENTS = _of(
    "eqdiff/latents.py",
    "test_latents",
    (
        "the posterior's mean, never a sample",
        "return mean + self.std[index] * torch.randn(mean.shape, generator=generator)",
        "return mean",
        "a_band_is_the_filtered_photo_and_each_draw_has_noise_of_its_own",
    ),
    (
        "cached bands in the wrong order",
        "for band in Band]",
        "for band in reversed(Band)]",
        "with_one_generator_both_sources_differ_in_references_alone",
    ),
    (
        "a photo serves as its own reference",
        "return (photos + torch.randint(1, count,",
        "return (photos + torch.randint(0, count,",
        "tests/test_objective.py::test_a_reference_is_never_made_from_its_target_while_there_are_others",
    ),
    (
        "the release's time gap left out",
        " - config.reference_time_gap).clamp(min=0)",
        ").clamp(min=0)",
        "tests/test_objective.py::test_official_reference_shares_noise_and_is_two_steps_earlier",
    ),
    (
        "class images masked like the subject's",
        "mask, bands = torch.cat([mask, torch.ones_like(mask)]), ",
        "mask, bands = torch.cat([mask, mask]), ",
        "tests/test_parity.py::test_class_images_come_with_plain_text_whole_masks_and_a_copy_as_reference",
    ),
    (
        "the dilated mask for the attention losses",
        "subject_mask=latents.subject_masks[photo]",
        "subject_mask=latents.noise_masks[photo]",
        "tests/test_parity.py::test_official_dilates_the_masks_of_noise_and_loss_but_not_those_of_attention",
    ),
    (
        "bands drawn without FDTE",
        "draw_bands(config.band_probs if config.fdte else (0, 0, 1), n, generator)",
        "draw_bands((0.4, 0.4, 0.2), n, generator)",
        "tests/test_objective.py::test_a_model_a_has_neither_reference_nor_rra_parameters",
    ),
    (
        "class images filtered by every preset",
        "encode, filtered=config.filter_prior)",
        "encode, filtered=True)",
        "tests/test_parity.py::test_class_images_are_filtered_by_official_only",
    ),
)

REST = [
    *_of(
        "eqdiff/live.py",
        "test_latents",
        (
            "photos encoded live are not filtered",
            "return self._drawn(apply_band(self.subject.images[photos], bands, band_filter(self.config)), generator)",
            "return self._drawn(self.subject.images[photos], generator)",
            "with_one_generator_both_sources_differ_in_references_alone",
        ),
    ),
    *_of(
        "eqdiff/data.py",
        "test_data",
        (
            "the reference is moved, its mask is not",
            "return _moved(image, *place, exact=False), moved",
            "return _moved(image, *place, exact=False), mask",
            "augmentation_keeps_mask_and_image_together",
        ),
    ),
    *_of(
        "eqdiff/encoding.py",
        "test_running",
        (
            "latents without the VAE's scale",
            "scale = vae.config.scaling_factor",
            "scale = 1.0",
            "decoding_undoes_encoding",
        ),
    ),
    *_of(
        "eqdiff/setup.py",
        "test_parity",
        (
            "weight decay on the token rows",
            '"weight_decay": config.token_weight_decay}',
            '"weight_decay": config.adam_weight_decay}',
            "the_optimizer_decays_the_token_rows_in_official_only",
        ),
    ),
    *_of(
        "eqdiff/model.py",
        "test_objective",
        (
            "slot found by white space",
            'if self.slot_by == "whitespace":',
            "if True:",
            "tests/test_parity.py::test_official_loses_the_slot_behind_a_word_of_several_tokens",
        ),
        (
            "each row starts at the whole word: S_ori is doubled",
            "return initial_rows(table, ids, n_rows, scale / n_rows)",
            "return initial_rows(table, ids, n_rows, scale)",
            "tests/test_parity.py::test_rows_start_at_half_the_class_word_each_or_at_the_rare_token_each",
        ),
        (
            "cross-attention's values stay frozen",
            '".attn2.to_k." in name or ".attn2.to_v." in name',
            '".attn2.to_k." in name',
            "the_one_list_is_that_of_the_paper",
        ),
        (
            "the reference UNet learns with the other",
            "self.reference_unet = copy.deepcopy(self.unet) if rra else None",
            "self.reference_unet = self.unet if rra else None",
            "after_five_steps_exactly_the_concept_has_moved",
        ),
        (
            "unloading leaves the learned weights",
            "parameter.data = self.former[name].to(parameter.device)",
            "parameter.data = parameter.data",
            "tests/test_concept.py::test_unloading_leaves_every_part_of_the_pipeline_as_it_was",
        ),
        (
            "unloading leaves hooks",
            "self.injector.remove()",
            "self.injector.inject",
            "tests/test_concept.py::test_unloading_leaves_every_part_of_the_pipeline_as_it_was",
        ),
    ),
    *_of(
        "eqdiff/concept.py",
        "test_concept",
        (
            "another base's concept accepted",
            "if base.fingerprint != concept.base_fingerprint:",
            "if False:",
            "a_concept_of_another_base_is_refused",
        ),
        (
            "a concept that does not fit is loaded in part",
            "    if differing:\n",
            "    if False:\n",
            "a_file_with_other_keys_or_shapes_is_refused",
        ),
        (
            "weights that load and do nothing",
            "parameter.copy_(given[name])",
            "parameter.copy_(parameter)",
            "saved_in_fp32_and_loaded_elsewhere_draws_the_same_picture",
        ),
        (
            "the token rows are not saved",
            "for n, p in model.concept_parameters().items()}\n    return Concept(",
            'for n, p in model.concept_parameters().items() if n != "tokens.rows"}\n    return Concept(',
            "saved_in_fp32_and_loaded_elsewhere_draws_the_same_picture",
        ),
    ),
    *_of(
        "eqdiff/pipeline.py",
        "test_concept",
        (
            "halves of guidance swapped",
            "context.first = len(z) - context.samples",
            "context.first = 0",
            "the_reference_can_be_kept_from_the_unconditional_half",
        ),
        (
            "reference for the conditional half alone",
            "rows = min(halves, len(next(iter(features.values()))) // context.count)",
            "rows = 1",
            "the_reference_can_be_kept_from_the_unconditional_half",
        ),
        (
            "attention window ignored",
            "if schedule is None or not window[0] <= schedule.progress(t) < window[1]:",
            "if schedule is None:",
            "within_the_attention_window_alone_the_reference_is_seen",
        ),
        (
            "a picture's noise depends on its batch",
            "generator=torch.Generator().manual_seed(seed)) for seed in seeds]",
            "generator=torch.Generator().manual_seed(seeds[0])) for seed in seeds]",
            "initial_noise_depends_on_the_seed_alone",
        ),
        (
            "S_LF in place of S_ori in every prompt",
            "torch.full((len(prompts),), band, device=ids.device)",
            "torch.full((len(prompts),), Band.LOW, device=ids.device)",
            "each_embedding_can_stand_for_the_subject",
        ),
    ),
    *_of(
        "eqdiff/checkpoint.py",
        "test_steps",
        (
            "every process draws the same batch",
            "* 4099 + process)",
            "* 4099)",
            "each_step_and_each_process_draws_its_own",
        ),
    ),
    *_of(
        "train_eqdiff.py",
        "test_steps",
        (
            "accumulated gradients divided twice",
            "/ config.gradient_accumulation_steps)",
            "/ config.gradient_accumulation_steps**2)",
            "accumulated_gradients_are_the_mean_of_different_batches",
        ),
        (
            "accumulation draws one batch twice",
            "process + self.accelerator.num_processes * part)",
            "process)",
            "accumulated_gradients_are_the_mean_of_different_batches",
        ),
    ),
    *_of(
        "eqdiff/metrics.py",
        "test_metrics",
        (
            "CLIP's features are not normalised",
            "return F.normalize(self.model.get_image_features(pixel_values=pixels).pooler_output, dim=-1).cpu()",
            "return self.model.get_image_features(pixel_values=pixels).pooler_output.cpu()",
            "features_from_pixels_agree_with_an_independent_computation",
        ),
        (
            "DINO's patches in place of its class token",
            ".last_hidden_state[:, 0]",
            ".last_hidden_state.mean(1)",
            "features_from_pixels_agree_with_an_independent_computation",
        ),
        (
            "the placeholder stays in the text that CLIP reads",
            "return plain(prompt, class_word)",
            "return prompt",
            "the_learned_token_is_removed_and_the_class_word_stays",
        ),
        (
            "a negative cosine counts",
            "return CLIPSCORE_SCALE * cosines.clamp(min=0)",
            "return CLIPSCORE_SCALE * cosines",
            "clipscore_is_two_and_a_half_cosines_and_never_negative",
        ),
    ),
    *_of(
        "eqdiff/compress.py",
        "test_export",
        (
            "more ranks than the budget has room for",
            "and splits[name].cost <= left:",
            "and left > 0:",
            "no_choice_of_ranks_within_the_budget_keeps_more_energy",
        ),
        (
            "energy without regard to its cost",
            "(s**2 / one.cost, -place, name)",
            "(s**2, -place, name)",
            "energy_counts_by_what_it_costs",
        ),
        (
            "differences from the trained weights",
            "layer.load_state_dict(own, strict=False)",
            "layer.load_state_dict({}, strict=False)",
            "what_a_concept_started_from_is_known_from_a_trained_model",
        ),
    ),
    *_of(
        "eqdiff/export.py",
        "test_export",
        (
            "a row exported in place of the rows' sum",
            ".sum(0, keepdim=True)}",
            "[:1].contiguous()}",
            "the_textual_inversion_in_plain_diffusers_draws_what_ours_draws_without_rra_and_kv",
        ),
    ),
]

MUTANTS = [
    *FREQUENCY,
    *TOKENS,
    *MASKING,
    *ATTENTION,
    *ATTENTION_LOSS,
    *REFERENCE,
    *OBJECTIVE,
    *LATENTS,
    *REST,
]
