"""Breakages of the rules around the method: files, settings, bases, concepts, training, drawing."""

from .rows import of

RULES = [
    *of(
        "eqdiff/data/augment.py",
        "test_data",
        (
            "the reference is moved, its mask is not",
            "return _moved(image, *place, exact=False), moved",
            "return _moved(image, *place, exact=False), mask",
            "augmentation_keeps_mask_and_image_together",
        ),
    ),
    *of(
        "eqdiff/data/vae.py",
        "test_running",
        (
            "latents without the VAE's scale",
            "scale = vae.config.scaling_factor",
            "scale = 1.0",
            "decoding_undoes_encoding",
        ),
    ),
    *of(
        "eqdiff/training/build.py",
        "test_parity",
        (
            "weight decay on the token rows",
            '"weight_decay": config.token_weight_decay,',
            '"weight_decay": config.adam_weight_decay,',
            "the_optimizer_decays_the_token_rows_in_official_only",
        ),
    ),
    *of(
        "eqdiff/training/class_images.py",
        "test_class_images",
        (
            "all class images are drawn by the first of their prompts",
            "prompts = [captions[number % len(captions)] for number in numbers]",
            "prompts = [captions[0] for number in numbers]",
            "class_images_are_drawn_by_the_lines_of_a_prompt_file_in_turn",
        ),
        (
            "class images of other prompts lie in one folder",
            'made_with += ("prompts", class_captions(config))',
            "pass",
            "class_images_are_drawn_by_the_lines_of_a_prompt_file_in_turn",
        ),
    ),
    *of(
        "eqdiff/training/trainer.py",
        "test_class_images",
        (
            "class images are trained under the usual caption",
            "method.objective(self.model, config, self.data.class_captions)",
            "method.objective(self.model, config)",
            "the_trainer_trains_each_class_image_under_the_caption_it_was_drawn_by",
        ),
    ),
    *of(
        "eqdiff/start.py",
        "test_objective",
        (
            "each row starts at the whole word: S_ori is doubled",
            "config.token_init_scale / config.token_rows)",
            "config.token_init_scale)",
            "tests/test_parity.py::test_rows_start_at_half_the_class_word_each_or_at_the_rare_token_each",
        ),
        (
            "the output of the start token is taken",
            "return text[0, 1 : 1 + pieces]",
            "return text[0, :pieces]",
            "tests/test_methods.py::test_rows_may_start_from_the_text_encoders_output_for_the_word",
        ),
    ),
    *of(
        "eqdiff/model.py",
        "test_objective",
        (
            "cross-attention's values stay frozen",
            '".attn2.to_k." in name or ".attn2.to_v." in name',
            '".attn2.to_k." in name',
            "the_one_list_is_that_of_the_paper",
        ),
        (
            "the reference UNet learns with the other",
            'own=lambda name: apart or self.is_trained(f"unet.{name}")',
            "own=lambda name: apart",
            "after_five_steps_exactly_the_concept_has_moved",
        ),
        (
            "unloading leaves the learned weights",
            "parameter.data = self.base_values[name].to(parameter.device, parameter.dtype)",
            "parameter.data = parameter.data",
            "tests/test_concept.py::test_between_calls_and_after_unloading_every_part_is_the_bases_own",
        ),
        (
            "a subject that is put in again takes the base's K and V",
            "value = self.learned[name].to(parameter.device, parameter.dtype)",
            "value = parameter.data",
            "tests/test_concept.py::test_saved_in_fp32_and_loaded_elsewhere_draws_the_same_picture",
        ),
        (
            "a fused LoRA is lost in what the subject has learned",
            "change = fused_change(self.unet, name)",
            "change = None",
            "tests/test_habits.py::test_a_lora_is_scaled_switched_off_fused_and_taken_out_"
            "as_without_a_concept",
        ),
    ),
    *of(
        "eqdiff/reader.py",
        "test_habits",
        (
            "slot found by white space",
            'if self.slot_by == "whitespace":',
            "if True:",
            "tests/test_parity.py::test_official_loses_the_slot_behind_a_word_of_several_tokens",
        ),
        (
            "words of inversions that come later are not read",
            "if self.base_tokenizer.get_added_vocab() != self._added:",
            "if False:",
            "before_or_after_loading_a_concept_it_is_the_same_and_stays_when_that_is_unloaded",
        ),
    ),
    *of(
        "eqdiff/base/compiled.py",
        "test_concept",
        (
            "torch keeps eight graphs of all blocks, and the others are not compiled",
            "max(GRAPHS, getattr(config, name))",
            "getattr(config, name)",
            "compiling_lets_torch_keep_a_graph_for_each_block",
        ),
    ),
    *of(
        "eqdiff/base/adapters.py",
        "test_habits",
        (
            "a LoRA's weights are taken for the base's",
            "layer = next((parent for parent in parents if parent in wrapped), None)",
            "layer = None",
            "from_pipe_takes_a_stock_pipeline_and_one_with_its_concept",
        ),
    ),
    *of(
        "eqdiff/base/identity.py",
        "test_habits",
        (
            "words of inversions are taken for the base's",
            "fewer = (0, *range(added, 0, -1))",
            "fewer = (0,)",
            "a_base_loaded_in_half_precision_takes_its_concept",
        ),
    ),
    *of(
        "eqdiff/drawing/arguments.py",
        "test_habits",
        (
            "a picture's noise depends on its batch",
            "generator=torch.Generator().manual_seed(seed)) for seed in seeds]",
            "generator=torch.Generator().manual_seed(seeds[0])) for seed in seeds]",
            "tests/test_concept.py::test_initial_noise_depends_on_the_seed_alone",
        ),
        (
            "pictures from seeds are square",
            "side = given.get(name) or pixels",
            'side = given.get("height") or pixels',
            "seeds_go_with_any_size",
        ),
        (
            "the first negative prompt stands for all",
            "return negatives * count",
            "return negatives",
            "negative_prompts_are_one_for_all_or_one_a_prompt",
        ),
    ),
    *of(
        "eqdiff/drawing/carried.py",
        "test_concept",
        (
            "S_LF in place of S_ori in every prompt",
            "torch.full((len(prompts),), self.band, device=ids.device)",
            "torch.full((len(prompts),), Band.LOW, device=ids.device)",
            "each_embedding_can_stand_for_the_subject",
        ),
        (
            "the subject stays in the UNet when a picture is drawn",
            "self.band = Band.FULL\n            if not resident:",
            "self.band = Band.FULL\n            if False:",
            "between_calls_and_after_unloading_every_part_is_the_bases_own",
        ),
        (
            "one reference for all schedulers",
            "tuple(timesteps.tolist()), tuple(chosen), reference_for",
            "len(timesteps), tuple(chosen), reference_for",
            "tests/test_habits.py::test_a_scheduler_may_be_changed_between_calls",
        ),
    ),
    *of(
        "eqdiff/drawing/loader.py",
        "test_habits",
        (
            "a saved base can be opened by this project alone",
            '"_class_name": "StableDiffusionPipeline"',
            '"_class_name": "EqDiffPipeline"',
            "what_save_pretrained_writes_is_the_base_that_any_tool_opens",
        ),
    ),
    *of(
        "eqdiff/concept/concept.py",
        "test_concept",
        (
            "another base's concept accepted",
            "if not is_same(concept, base.fingerprint, base.identity):",
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
            "parameter.copy_(values[name])",
            "parameter.copy_(parameter)",
            "saved_in_fp32_and_loaded_elsewhere_draws_the_same_picture",
        ),
        (
            "the token rows are not saved",
            "in model.concept_parameters().items()\n",
            'in model.concept_parameters().items()\n        if name != "tokens.rows"\n',
            "saved_in_fp32_and_loaded_elsewhere_draws_the_same_picture",
        ),
    ),
    *of(
        "eqdiff/sampler.py",
        "test_concept",
        (
            "halves of guidance swapped",
            "self.context.first = len(z) - self.context.samples",
            "self.context.first = 0",
            "the_reference_can_be_kept_from_the_unconditional_half",
        ),
        (
            "reference for the conditional half alone",
            "rows = min(halves, texts)",
            "rows = 1",
            "the_reference_can_be_kept_from_the_unconditional_half",
        ),
        (
            "attention window ignored",
            "if not first <= schedule.progress(t) < last:",
            "if schedule.progress(t) < 0:",
            "within_the_attention_window_alone_the_reference_is_seen",
        ),
        (
            "guidance that a callback has ended counts on",
            "halves = self.halves()",
            "halves = 2",
            "tests/test_habits.py::test_a_callback_may_change_guidance_latents_and_text_on_the_way",
        ),
        (
            "the user's VAE slicing ends with a call",
            'if not wanted or getattr(vae, "use_slicing", True):',
            "if not wanted:",
            "tests/test_habits.py::test_the_users_slicing_stays_and_ours_goes",
        ),
    ),
    *of(
        "eqdiff/pipeline.py",
        "test_habits",
        (
            "the strength of the reference never arrives",
            "context.strength = reference_strength",
            "context.strength = 1.0",
            "tests/test_ours_beside.py::"
            "test_a_strength_of_0_is_no_reference_and_1_is_the_trained_gate_bit_for_bit",
        ),
        (
            "clip_skip ignored",
            "prompt_embeds = self._tau(prompts, device, clip_skip)",
            "prompt_embeds = self._tau(prompts, device)",
            "clip_skip_leaves_out_layers_with_and_without_a_concept",
        ),
        (
            "a LoRA's scale is lost",
            'given["cross_attention_kwargs"] = {**others, "reference": context}',
            'given["cross_attention_kwargs"] = {"reference": context}',
            "a_lora_is_scaled_switched_off_fused_and_taken_out_as_without_a_concept",
        ),
    ),
    *of(
        "eqdiff/training/checkpoint.py",
        "test_steps",
        (
            "every process draws the same batch",
            "* 4099 + process)",
            "* 4099)",
            "each_step_and_each_process_draws_its_own",
        ),
    ),
    *of(
        "eqdiff/training/trainer.py",
        "test_steps",
        (
            "accumulated gradients divided twice",
            "/ self.config.gradient_accumulation_steps\n",
            "/ self.config.gradient_accumulation_steps**2\n",
            "accumulated_gradients_are_the_mean_of_different_batches",
        ),
        (
            "accumulation draws one batch twice",
            "process + self.accelerator.num_processes * part",
            "process",
            "accumulated_gradients_are_the_mean_of_different_batches",
        ),
    ),
    *of(
        "eqdiff/evaluation/metrics.py",
        "test_metrics",
        (
            "CLIP's features are not normalised",
            "(pixel_values=pixels).pooler_output\n"
            "        return F.normalize(features, dim=-1).cpu()",
            "(pixel_values=pixels).pooler_output\n        return features.cpu()",
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
    *of(
        "eqdiff/concept/compress.py",
        "test_export",
        (
            "more ranks than the budget has room for",
            "and splits[name].cost <= left:",
            "and left > 0:",
            "no_choice_of_ranks_within_the_budget_keeps_more_energy",
        ),
        (
            "energy without regard to its cost",
            "(s**2 / svd.cost, -place, name)",
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
    *of(
        "eqdiff/concept/plain.py",
        "test_export",
        (
            "a row exported in place of the rows' sum",
            '.parameters["tokens.rows"].sum(0, keepdim=True)',
            '.parameters["tokens.rows"][:1].contiguous()',
            "the_textual_inversion_in_plain_diffusers_draws_what_ours_draws_without_rra_and_kv",
        ),
    ),
    *of(
        "eqdiff/wording.py",
        "test_wording",
        (
            "marks of reading direction are shown",
            'INVISIBLE = ("Cc", "Cf", "Cs")',
            'INVISIBLE = ("Cc", "Cs")',
            "errors_warnings_and_prints_show_strangers_text_without_its_commands",
        ),
        (
            "markup of a stranger's concept goes into the card",
            'if form == "markdown":',
            'if form == "never":',
            "a_strangers_concept_adds_no_markup_to_the_card",
        ),
    ),
]
