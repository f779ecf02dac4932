"""Breakages of the other methods."""

from .rows import of

METHODS = [
    *of(
        "eqdiff/settings/presets.py",
        "test_methods",
        (
            "a method's preset is not taken",
            "**presets[preset], **level}",
            "**PRESETS[preset], **level}",
            "a_baseline_is_eqdiffs_trainer_with_parts_of_it_off",
        ),
    ),
    *of(
        "eqdiff/methods/infusion.py",
        "test_infusion",
        (
            "the residual is on every token",
            "marks = (slots[..., None] == numbers)",
            "marks = (slots[..., None] != numbers)",
            "a_prompt_without_the_subject_is_drawn_as_the_base_draws_it "
            "the_residual_goes_to_the_values_of_the_slot_alone",
        ),
        (
            "two streams look for themselves",
            "q, k = (torch.cat([x[: len(x) // 2]] * 2) for x in (q, k))",
            "q, k = (torch.cat([x[: len(x) // 2], x[len(x) // 2 :]]) for x in (q, k))",
            "two_streams_look_as_the_base_does_in_every_layer_whatever_was_learned",
        ),
        (
            "the base's stream has the subject",
            "torch.zeros_like(text[..., width:])",
            "text[..., width:]",
            "two_streams_look_as_the_base_does_in_every_layer_whatever_was_learned",
        ),
        (
            "the base's stream is drawn",
            "return (noise[len(noise) // 2 :],)",
            "return (noise[: len(noise) // 2],)",
            "a_prompt_without_the_subject_is_drawn_as_the_base_draws_it",
        ),
        (
            "residuals do not start at zero",
            "zeros = torch.zeros(subjects, to_v.out_features, **how)",
            "zeros = torch.full((subjects, to_v.out_features), 0.1, **how)",
            "without_residuals_it_is_the_base_bit_for_bit",
        ),
        (
            "every subject has the first one's residual",
            "for mark, residual in zip(marks.unbind(-1), residuals, strict=False):",
            "for mark, residual in zip(marks.unbind(-1), residuals[:1].expand_as(residuals)):",
            "one_of_two_is_drawn_as_if_it_were_alone",
        ),
        (
            "the loss is divided by the mask's area",
            "return (batch.mask * difference).square().mean((1, 2, 3))",
            "return (batch.mask * difference).square().sum((1, 2, 3)) / batch.mask.sum((1, 2, 3))",
            "the_loss_is_the_mean_over_all_cells_of_the_masked_error",
        ),
    ),
    *of(
        "eqdiff/methods/ico.py",
        "test_ico",
        (
            "all photos share the first one's words",
            "self.contexts[batch.photo].to(filled.dtype)",
            "self.contexts[0 * batch.photo].to(filled.dtype)",
            "only_the_photos_of_the_batch_teach_their_words",
        ),
        (
            "the noun is learned too",
            "& ~self.slots[0] & ~self.noun  # (N,), the context's columns",
            "& ~self.slots[0]  # (N,), the context's columns",
            "the_words_are_those_round_the_tasks_and_the_noun_of_as_many_pieces_as_it_has",
        ),
        (
            "the noun is found anywhere",
            "self.noun = behind(self.slots[0], len(noun)) & find_columns",
            "self.noun = find_columns",
            "a_noun_that_the_caption_says_too_is_a_word_there",
        ),
        (
            "positions as released by default",
            'if self.config.context_positions == "true":',
            'if self.config.context_positions == "release":',
            "at_first_the_caption_is_the_plain_one_bit_for_bit",
        ),
        (
            "closing words keep their true positions",
            "positions[closing] = torch.arange(1, len(closing) + 1, device=positions.device)",
            "pass",
            "as_released_tasks_noun_and_closing_words_count_from_one",
        ),
        (
            "every slot takes the first task",
            "place = (number - before - 1).clamp(0, tasks.shape[1] - 1)",
            "place = (number - before - 1).clamp(0, 0)",
            "each_run_of_slots_takes_the_tasks_in_turn",
        ),
    ),
    *of(
        "eqdiff/training/checkpoint.py",
        "test_ico",
        (
            "a checkpoint does not have what is trained beside the concept",
            "save_file(kept | _optimizer_tensors(optimizer, named)",
            "save_file(_optimizer_tensors(optimizer, named)",
            "the_contexts_move_ten_times_as_fast_and_a_checkpoint_has_them",
        ),
    ),
    *of(
        "eqdiff/training/build.py",
        "test_ico",
        (
            "contexts at the rate of the weights",
            '"lr": config.context_rate * config.learning_rate',
            '"lr": config.learning_rate',
            "the_contexts_move_ten_times_as_fast_and_a_checkpoint_has_them",
        ),
    ),
    *of(
        "eqdiff/sampling/alignit.py",
        "test_alignit",
        (
            "the tuned weights read the untuned text",
            "base = layer.weight if weight is None else weight.to(tuned.device)",
            "base = layer.weight",
            "keys_and_values_of_other_words_are_the_bases_and_the_subjects_are_tuned",
        ),
        (
            "the class word behind the subject is untuned",
            "self.own = (slots | behind(slots, len(noun))).to(device)",
            "self.own = slots.to(device)",
            "keys_and_values_of_other_words_are_the_bases_and_the_subjects_are_tuned",
        ),
        (
            "the subject stays in the untuned text",
            "vectors = table[noun].float().mean(0).expand(len(ids), -1)",
            "vectors = model.tokens.rows.sum(0).expand(len(ids), -1)",
            "keys_and_values_of_other_words_are_the_bases_and_the_subjects_are_tuned",
        ),
    ),
    *of(
        "eqdiff/evaluation/gaussians.py",
        "test_against_base",
        (
            "the covariances' roots are multiplied without order",
            "both = _root(half @ second @ half)",
            "both = half @ _root(second)",
            "it_is_the_closed_form_of_two_gaussians",
        ),
        (
            "the means are not compared",
            "(a.mean(0) - b.mean(0)).square().sum()",
            "(b.mean(0) - b.mean(0)).square().sum()",
            "the_trace_grows_as_the_set_collapses_onto_one_picture_and_the_mean_as_it_moves",
        ),
    ),
    *of(
        "eqdiff/evaluation/divergence.py",
        "test_against_base",
        (
            "the base is compared with itself",
            "with carried.inside(Band.FULL, z.device):",
            "if True:",
            "a_method_that_changes_the_weights_has_some",
        ),
        (
            "a ring's pictures are all of its first prompt",
            "texts = [prompt for prompt in prompts for _ in range(pictures)]",
            "texts = [prompts[0] for _ in prompts for _ in range(pictures)]",
            "a_prompts_draws_do_not_depend_on_the_other_prompts_of_its_ring",
        ),
        (
            "the score's weight is the signal's",
            "score.append(square / (1 - alpha_bar.double()))",
            "score.append(square * (1 - alpha_bar.double()))",
            "a_method_that_changes_the_weights_has_some",
        ),
        (
            "a change of v counts as one of eps",
            '"v_prediction": alpha_bar,',
            '"v_prediction": torch.ones_like(alpha_bar),',
            "a_change_of_any_prediction_is_told_as_one_of_eps",
        ),
    ),
    *of(
        "eqdiff/methods/words.py",
        "test_infusion",
        (
            "only whole tokens inside the place count",
            "inside = (starts < last) & (stops > first)",
            "inside = (starts >= first) & (stops <= last)",
            "the_slot_is_what_the_place_wrote",
        ),
        (
            "a name is not looked up",
            "return self.places[name]",
            "return (1, self.places[name][1])",
            "several_subjects_are_named_by_number_or_folder",
        ),
        (
            "half a subject is enough",
            "self._require_whole(filled, numbers.shape[1])",
            "pass",
            "a_subject_that_is_cut_off_is_refused",
        ),
    ),
    *of(
        "eqdiff/concept/several.py",
        "test_infusion",
        (
            "any recipes go together",
            "other = [f for f in fields if getattr",
            "other = [f for f in fields[:0] if getattr",
            "only_concepts_that_go_together_are_drawn_together",
        ),
    ),
    *of(
        "eqdiff/concept/file.py",
        "test_infusion",
        (
            "Infusion's file carries the noise",
            'parts = {"reference.noise": references.noise} if needed else {}',
            'parts = {"reference.noise": concept.references.noise}',
            "training_moves_the_residuals_and_nothing_else",
        ),
    ),
    *of(
        "eqdiff/concept/concept.py",
        "test_methods",
        (
            "every concept is EqDiff's",
            "method = METHODS[recipe.method]",
            'method = METHODS["eqdiff"]',
            "a_concept_is_drawn_by_its_own_method",
        ),
    ),
]
