"""Breakages of the method's own files."""

from .rows import of

OURS = "tests/test_ours_beside.py::test_"  # settings that are not the paper's

FREQUENCY = of(
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
        "complementary_bands_sum_to_the_image "
        "low_of_a_constant_is_the_constant_and_high_is_nothing",
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


TOKENS = of(
    "eqdiff/tokens.py",
    "test_tokens",
    (
        "S_ori is the mean, not the sum",
        "Band.FULL: (1.0, 1.0)",
        "Band.FULL: (0.5, 0.5)",
        "low_and_high_are_the_rows_and_full_is_their_sum",
    ),
    (
        "S_LF and S_HF swapped",
        "Band.LOW: (1.0, 0.0),\n    Band.HIGH: (0.0, 1.0),",
        "Band.LOW: (0.0, 1.0),\n    Band.HIGH: (1.0, 0.0),",
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
        "torch.where(slots[:, :, None], filling, embedded)",
        "torch.where(slots[:, :, None], filling + embedded, embedded)",
        "injection_equals_a_row_of_a_resized_table",
    ),
    (
        "rows start at the sum of the word's tokens",
        ".float().mean(0)",
        ".float().sum(0)",
        "rows_start_at_the_scaled_mean_of_the_words_tokens",
    ),
)


MASKING = of(
    "eqdiff/masking.py",
    "test_masking",
    (
        "the mask shrinks as the noise grows",
        "dilation_radius(fraction * share, mask.shape[-1])",
        "dilation_radius(fraction * (1 - share), mask.shape[-1])",
        "a_dilation_by_time_is_each_samples_own",
    ),
    (
        "noise everywhere where it should be inside",
        "torch.where(everywhere.view(-1, 1, 1, 1), torch.ones_like(mask), mask)",
        "torch.where(everywhere.view(-1, 1, 1, 1), mask, torch.ones_like(mask))",
        "noise_is_in_the_mask_or_everywhere_sample_by_sample",
    ),
    (
        "a loss where no noise is",
        "return torch.lerp(mask, noised, background)",
        "return torch.lerp(mask, torch.ones_like(mask), background)",
        "the_background_counts_where_noise_is_and_nowhere_else",
    ),
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
        "return total / (prediction.shape[1] * area)",
        "return (prediction.float() - target.float()).square().mean((1, 2, 3))",
        "loss_ignores_everything_outside_the_mask",
    ),
    (
        "loss summed over channels, as the release's",
        "/ (prediction.shape[1] * area)",
        "/ area",
        "loss_is_the_mean_over_the_mask_and_over_channels",
    ),
    (
        "loss divided by the picture's area, not the mask's",
        "area = mask.float().sum((1, 2, 3))",
        "area = mask[0].numel()",
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
        "((share >= threshold) & (share > 0))",
        "(share >= 0.5)",
        "latent_mask_of_a_thin_subject_is_not_empty_and_that_of_none_is "
        "tests/test_attention.py::test_a_small_subject_does_not_vanish_at_a_coarse_level",
    ),
)


ATTENTION = of(
    "eqdiff/attention.py",
    "test_attention",
    (
        "a strength that pushes the gate beyond 1",
        "(strength * m_f).clamp(max=1)",
        "strength * m_f",
        f"{OURS}a_scaled_gate_stays_a_share",
    ),
    (
        "a strength that leaves the gate as it is",
        "m_f = scaled_gate(m_f, reference.strength)",
        "scaled_gate(m_f, reference.strength)",
        f"{OURS}a_strength_of_0_is_no_reference_and_1_is_the_trained_gate_bit_for_bit",
    ),
    (
        "zero initialisation is not zero",
        "fuse.weight.zero_()",
        "fuse.weight.normal_(std=0.02)",
        "zero_gate_leaves_the_unet_bit_identical",
    ),
    (
        "clamp dead at its bounds",
        "torch.where(passes_low & passes_high, grad, 0)",
        "torch.where((x > 0) & (x < 1), grad, 0)",
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
        "torch.cat([o_r, o_s], dim=-1)",
        "torch.cat([o_s, o_r], dim=-1)",
        "rra_is_eq_8_and_9_written_out",
    ),
    (
        "values of the reference through its keys' projection",
        "v = _project(self.to_v_ref, features)",
        "v = _project(self.to_k_ref, features)",
        "rra_is_eq_8_and_9_written_out",
    ),
    (
        "F_RA added, F_SA not taken back (Eq. 9)",
        "f_sa[looking] * (1 - m_f) + f_ra * m_f",
        "f_sa[looking] + f_ra * m_f",
        "rra_is_eq_8_and_9_written_out",
    ),
    (
        "reference projections share the frozen weights",
        "self.to_k_ref = _copied_linear(to_k)",
        "self.to_k_ref = to_k.requires_grad_(True)",
        "projections_start_as_copies_that_do_not_share_memory",
    ),
    (
        "no RRA in the middle block",
        'layers: Iterable[str] = ("mid_block", "up_blocks")',
        'layers: Iterable[str] = ("up_blocks",)',
        "zero_gate_leaves_the_unet_bit_identical",
    ),
)


PROCESSORS = of(
    "eqdiff/processors.py",
    "test_attention",
    (
        "RRA joined to the unprojected attention",
        "return self.blend(q, o_s, f_sa, attn.heads, reference)",
        "return self.blend(q, o_s, o_s, attn.heads, reference)",
        "zero_gate_leaves_the_unet_bit_identical rra_is_eq_8_and_9_written_out",
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
)


CONTEXT = of(
    "eqdiff/context.py",
    "test_attention",
    (
        "the first samples look at the reference, whoever should",
        "return features, slice(self.first, self.first + samples)",
        "return features, slice(0, samples)",
        "the_samples_that_look_need_not_be_the_first",
    ),
)


ATTENTION_LOSS = of(
    "eqdiff/attention_loss.py",
    "test_attention",
    (
        "Eq. 10 of the release over all queries",
        'rho = rho if form == "all" else m_g * rho',
        "rho = rho",
        "reference_loss_through_the_unet_equals_eq_10_on_the_explicit_maps",
    ),
    (
        "cross-attention map not divided by its maximum",
        "attention / attention.amax(1, keepdim=True).clamp_min(1e-8)",
        "attention",
        "cross_attention_loss_by_hand",
    ),
    (
        "layers summed, not averaged",
        "mean = torch.stack(of_level).mean(0)",
        "mean = torch.stack(of_level).sum(0)",
        "reference_loss_averages_layers_then_resolutions",
    ),
)


REFERENCE = of(
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


OBJECTIVE = of(
    "eqdiff/objective.py",
    "test_objective",
    (
        "the trained UNet is matched with itself",
        "unet = self.model.reference_unet\n",
        "unet = self.model.unet\n",
        f"{OURS}the_class_is_held_to_the_bases_own_prediction",
    ),
    (
        "the frozen UNet reads the subject's caption",
        "text = self.class_text.expand(len(t), -1, -1)",
        "text = self.caption(batch)[:1].expand(len(t), -1, -1)",
        f"{OURS}the_class_is_held_to_the_bases_own_prediction",
    ),
    (
        "matched photos are without noise for the frozen UNet",
        "z_t = add_noise(batch.z0[n:], batch.noise[n:], self.model.alphas_cumprod[t])",
        "z_t = batch.z0[n:]",
        f"{OURS}the_class_is_held_to_the_bases_own_prediction",
    ),
    (
        "prior loss without its weight",
        'terms["prior"] = (self.config.prior_loss_weight, error[n:].mean())',
        'terms["prior"] = (1.0, error[n:].mean())',
        "official_totals_are_a_quarter_of_the_releases",
    ),
    (
        "reference-attention loss without its weight",
        'terms["reference_attention"] = (config.ra_loss_weight, l_ra.mean())',
        'terms["reference_attention"] = (1.0, l_ra.mean())',
        "official_totals_are_a_quarter_of_the_releases",
    ),
    (
        "noise predicted where the base predicts velocity",
        'if self.model.scheduler.config.prediction_type == "v_prediction":',
        "if False:",
        "tests/test_velocity.py::test_where_the_scheduler_says_so_the_target_is_the_velocity",
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
        "return torch.cat([text, self.class_caption(batch)])",
        "return torch.cat([text, self.reference_text.expand(len(batch.z0) - n, -1, -1)])",
        "captions_are_the_subjects_with_its_band_then_the_class_images",
    ),
    (
        "all class images under the first of their captions",
        "self.class_text[batch.class_image % len(self.class_text)]",
        "self.class_text[batch.class_image * 0]",
        "class_images_have_captions_of_their_own_in_turn",
    ),
    (
        "every caption with S_ori, whatever the photo's band",
        "text = self.model.encode(ids, slots, batch.bands[:n])",
        "text = self.model.encode(ids, slots, torch.full_like(batch.bands[:n], 2))",
        "captions_are_the_subjects_with_its_band_then_the_class_images",
    ),
    (
        "L_x where the vector is, not at the placeholder",
        "self.columns = model.placeholders(wordings, word)",
        "self.columns = self.slots",
        "tests/test_parity.py::"
        "test_officials_cross_loss_looks_at_the_placeholders_token_where_the_slot_is_lost",
    ),
    (
        "the target's mask on the reference's attention (Eq. 10)",
        "mask=batch.mask_r,",
        "mask=batch.mask,",
        "eq_10_takes_the_references_mask_on_its_side_and_the_targets_on_its",
    ),
    (
        "the reference's mask as Eq. 10's target",
        "l_ra = reference_attention_loss(rho, batch.subject_mask,",
        "l_ra = reference_attention_loss(rho, batch.mask_r[:n],",
        "eq_10_takes_the_references_mask_on_its_side_and_the_targets_on_its",
    ),
)


LATENTS = of(
    "eqdiff/data/latents.py",
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
        "class images filtered by every preset",
        "encode, filtered=config.filter_prior)",
        "encode, filtered=True)",
        "tests/test_parity.py::test_class_images_are_filtered_by_official_only",
    ),
    (
        "photos encoded live are not filtered",
        "apply_band(self.subject.images[photos], bands, band_filter(self.config))",
        "self.subject.images[photos]",
        "with_one_generator_both_sources_differ_in_references_alone",
    ),
)


BATCH = of(
    "eqdiff/batch.py",
    "test_latents",
    (
        "a photo serves as its own reference",
        "return (photos + torch.randint(1, count,",
        "return (photos + torch.randint(0, count,",
        "tests/test_objective.py::test_a_reference_is_never_made_from_its_target_while_there_are_others",
    ),
    (
        "the release's time gap left out",
        " - config.reference_time_gap",
        "",
        "tests/test_objective.py::test_official_reference_shares_noise_and_is_two_steps_earlier",
    ),
    (
        "class images masked like the subject's",
        "else torch.ones_like(mask)",
        "else mask",
        "tests/test_parity.py::test_class_images_come_with_plain_text_whole_masks_and_a_copy_as_reference",
    ),
    (
        "loss masking noises inside the mask alone",
        'if config.masking != "noise":',
        'if config.masking == "none":',
        "tests/test_objective.py::test_masked_noising_is_what_tells_noise_from_loss_masking",
    ),
    (
        "noise inside the mask late, not early",
        "full = time >= config.masked_noise_below",
        "full = time < config.masked_noise_below",
        f"{OURS}noise_is_everywhere_from_the_bound_on_and_the_loss_stays_masked",
    ),
    (
        "a share of full noise that is drawn when it is 0",
        "    if config.full_noise_share == 0:\n",
        "    if config.full_noise_share < 0:\n",
        f"{OURS}what_is_off_by_default_draws_nothing",
    ),
    (
        "a share of full noise for the whole batch at once",
        "torch.rand(len(time), generator=generator)",
        "torch.rand(1, generator=generator)",
        f"{OURS}a_share_of_the_samples_has_noise_everywhere",
    ),
    (
        "the mask grows from the dilated one",
        "own = latents.subject_masks[subject.number]",
        "own = latents.noise_masks[subject.number]",
        f"{OURS}the_mask_grows_with_the_noise",
    ),
    (
        "photos in bands under the class caption",
        "return _Samples(photo, latents.target(photo, full, generator), full)",
        "return _Samples(photo, latents.target(photo, full * 0, generator), full)",
        f"{OURS}the_class_is_held_on_whole_photos_without_a_reference",
    ),
    (
        "the frozen UNet is matched with a reference",
        'has_images = prior is not None and config.prior_kind == "images"',
        "has_images = bool(latents.class_count) or prior is not None",
        f"{OURS}the_class_is_held_on_whole_photos_without_a_reference",
    ),
    (
        "the dilated mask for the attention losses",
        "subject_mask=latents.subject_masks[subject.number]",
        "subject_mask=latents.noise_masks[subject.number]",
        "tests/test_parity.py::test_official_dilates_the_masks_of_noise_and_loss_but_not_those_of_attention",
    ),
    (
        "bands drawn without FDTE",
        "draw_bands(config.band_probs if config.fdte else ALWAYS_FULL, n, generator)",
        "draw_bands((0.4, 0.4, 0.2), n, generator)",
        "tests/test_objective.py::test_a_model_a_has_neither_reference_nor_rra_parameters",
    ),
)

METHOD = [
    *FREQUENCY,
    *TOKENS,
    *MASKING,
    *ATTENTION,
    *PROCESSORS,
    *CONTEXT,
    *ATTENTION_LOSS,
    *REFERENCE,
    *OBJECTIVE,
    *LATENTS,
    *BATCH,
    *of(
        "eqdiff/training/trainer.py",
        "test_methods",
        (
            "a training takes cuDNN's attention",
            "        leave_cudnn_attention()\n",
            "",
            "a_training_leaves_cudnns_attention_which_gave_nan_in_bf16",
        ),
    ),
    *of(
        "eqdiff/settings/presets.py",
        "test_config",
        (
            "plus has Stable Diffusion's sizes on the bundled base",
            'if preset == "plus" and usual',
            'if preset == "paper" and usual',
            "plus_is_e_with_matched_predictions_and_on_the_bundled_base_has_its_sizes_too",
        ),
        (
            "class images that are asked for are not made",
            "teacher and preserved and _OF_CLASS_IMAGES.isdisjoint(named)",
            "teacher and preserved",
            "who_says_which_class_images_gets_class_images",
        ),
        (
            "predictions are matched without a teacher",
            "teacher and preserved and _OF_CLASS_IMAGES",
            "preserved and _OF_CLASS_IMAGES",
            "where_no_predictions_can_be_matched_a_preset_does_not_ask_for_them",
        ),
    ),
]
