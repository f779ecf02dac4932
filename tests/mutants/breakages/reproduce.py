"""Breakages of the reproduction of the paper's tables."""

from .rows import of

REPRODUCE = [
    *of(
        "studies/reproduce/cell.py",
        "test_reproduce",
        (
            "the prompts are no part of a cell's key",
            '"prompts": self.prompts,',
            '"prompts": [],',
            "the_key_of_a_cell_is_of_all_that_decides_its_result",
        ),
        (
            "places are a part of a cell's key",
            '"eyes": self.eyes_digest,',
            '"eyes": [self.eyes_digest, self.photos],',
            "the_key_of_a_cell_is_of_nothing_else",
        ),
    ),
    *of(
        "studies/reproduce/store.py",
        "test_engines",
        (
            "a disk that forgets exclusive creation is taken",
            "        if twice:",
            "        if False:",
            "a_disk_without_exclusive_creation_is_refused",
        ),
        (
            "a seal of times alone",
            'if name != "seal"}\n    return hashlib',
            'if name == "seconds"}\n    return hashlib',
            "a_seal_is_of_all_that_a_row_says",
        ),
        (
            "failures without end",
            'if len(tries["failed"]) >= TRIES:',
            'if len(tries["failed"]) >= TRIES + 1:',
            "a_cell_that_always_fails_is_tried_three_times_and_the_rest_goes_on",
        ),
    ),
    *of(
        "studies/reproduce/verify.py",
        "test_reproduce",
        (
            "verify does not look at pictures",
            "    if not images.is_dir():",
            "    if True:",
            "a_cell_that_was_tampered_with_does_not_verify",
        ),
        (
            "verify does not compare cells that it runs again",
            "if None not in means and abs(means[0] - means[1]) > AGAIN:",
            "if None in means:",
            "a_row_without_pictures_is_found_out_by_running_its_cell_again",
        ),
    ),
    *of(
        "studies/reproduce/tables.py",
        "test_reproduce",
        (
            "the paper's CLIP-T compared unscaled",
            "gap = abs(ours - theirs) / scale",
            "gap = abs(ours - theirs)",
            "a_table_has_the_papers_figures_beside_ours_intervals_and_verdicts",
        ),
        (
            "directions against the paper's",
            "pair = (wanted.against, other) if ours > theirs else (other, wanted.against)",
            "pair = (wanted.against, other)",
            "a_table_has_the_papers_figures_beside_ours_intervals_and_verdicts",
        ),
    ),
    *of(
        "studies/reproduce/again.py",
        "test_studies",
        (
            "the subjects that chose are asked again",
            "of_toybox(ALL)][FIRST:]",
            "of_toybox(ALL)]",
            "what_was_chosen_is_measured_on_subjects_that_did_not_choose",
        ),
        (
            "rows of any subject are asked again",
            'if row["subject"] in subjects',
            "if subjects",
            "what_was_chosen_is_measured_on_subjects_that_did_not_choose",
        ),
        (
            "a method of no cells is passed over",
            "        require(method in asked,",
            "        require(True,",
            "a_row_of_another_table_is_asked_again_by_its_name",
        ),
    ),
    *of(
        "studies/reproduce/cost.py",
        "test_reproduce",
        (
            "FreeCustom's photos cost nothing",
            "    if sample.freecustom:",
            "    if False:",
            "what_acts_at_sampling_costs_what_the_benchmark_counts",
        ),
    ),
    *of(
        "studies/reproduce/claims.py",
        "test_engines",
        (
            "a claimed cell is run by others too",
            "    except Timeout:\n        yield False",
            "    except Timeout:\n        yield True",
            "a_claim_is_one_processes_and_that_of_a_silent_one_is_taken_over",
        ),
        (
            "an empty claim stands for ever",
            "elif now - since >= TORN:",
            "elif False:",
            "a_claim_whose_process_was_killed_before_it_wrote_its_name_stands_for_seconds",
        ),
    ),
    *of(
        "studies/reproduce/lending.py",
        "test_lending",
        (
            "a concept of other code is lent",
            '/ f"{cell.training_key}-{code_mark()}.json"',
            '/ f"{cell.training_key}.json"',
            "neither_a_concept_of_other_code_nor_one_that_was_not_kept_is_lent",
        ),
    ),
    *of(
        "studies/reproduce/cell.py",
        "test_lending",
        (
            "a lent concept is trained over",
            "    if not lent:",
            "    if True:",
            "a_cell_with_a_lent_concept_is_not_trained",
        ),
        (
            "the seed is no part of a training's key",
            '            "seed": self.seed,',
            '            "seed": 0,',
            "another_training_is_not_lent",
        ),
    ),
    *of(
        "studies/reproduce/estimates.py",
        "test_studies",
        (
            "pictures without a metric count as its zero",
            "[row[metric] for row in rows if metric in row]",
            "[row.get(metric, 0.0) for row in rows]",
            "a_metric_that_some_pictures_lack_is_of_those_that_have_it",
        ),
        (
            "numbers in JSON lose their digits",
            'float(f"{value:.{DIGITS}g}")',
            'float(f"{value:.1g}")',
            "numbers_in_json_have_six_digits",
        ),
    ),
    *of(
        "toybox/customization.py",
        "test_marks",
        (
            "the gap of each look is the first one's",
            "(identity[name] - base) / (drawn - base)",
            "(identity[looks[0]] - base) / (drawn - base)",
            "the_gap_is_what_the_base_lacks_to_drawn_pictures",
        ),
    ),
    *of(
        "toybox/make_subjects.py",
        "test_subjects",
        (
            "the bundled subjects are called by their nouns",
            "describe(instance(TABLE, class_name, index))",
            "class_name",
            "the_committed_pictures_are_what_the_command_draws",
        ),
    ),
    *of(
        "studies/reproduce/worst.py",
        "test_studies",
        (
            "the worst of text ignore CLIP-T",
            'return one.row["context"] + one.row["style"], one.row["clip_t"]',
            'return one.row["context"] + one.row["style"], 0.0',
            "the_worst_are_the_lowest_marks_and_are_told_what_is_wrong",
        ),
    ),
    *of(
        "studies/reproduce/run.py",
        "test_lending",
        (
            "settings are chosen on test subjects",
            'not table.dev or config.toybox_table == "dev"',
            "True",
            "a_table_that_does_not_fit_is_refused",
        ),
    ),
    *of(
        "eqdiff/evaluation/patches.py",
        "test_patches",
        (
            "the background painted over in place of the subject",
            "return nearest > (drawn @ outside.T).amax(-1)",
            "return nearest < (drawn @ outside.T).amax(-1)",
            "what_matches_the_subject_better_than_its_photos_background_is_painted_over",
        ),
        (
            "patches of the whole photo are the subject",
            "return (shares >= INSIDE) | (most & (shares > 0))",
            "return shares >= 0",
            "a_patch_is_subject_where_the_mask_covers_half_of_it",
        ),
    ),
    *of(
        "studies/reproduce/plan.py",
        "test_reproduce",
        (
            "wide prompts are the usual ones",
            'width = "_wide" if config.wide_prompts else ""',
            'width = ""',
            "wide_prompts_are_other_cells_of_the_same_trainings",
        ),
    ),
    *of(
        "studies/reproduce/spread.py",
        "test_studies",
        (
            "the floor is the base against itself from the same seeds",
            "for number in (0, 1)",
            "for number in (0, 0)",
            "w2_is_taken_against_what_the_base_draws_once_for_all_methods",
        ),
    ),
    *of(
        "studies/quality/side_by_side.py",
        "test_quality",
        (
            "each half is looked at for the other's subject",
            "own, other = labels[side], labels[1 - side]",
            "own, other = labels[1 - side], labels[side]",
            "each_half_of_a_picture_of_two_is_its_own_subjects_or_the_others",
        ),
    ),
    *of(
        "studies/quality/gap.py",
        "test_quality",
        (
            "a gap is measured from the preset's pictures",
            "closed = (mean - base) / (truth - base)",
            "closed = (mean - base) / (truth - mean)",
            "a_gap_is_closed_by_what_leads_from_the_best_caption_to_the_truth",
        ),
    ),
    *of(
        "toybox/quality.py",
        "test_marks",
        (
            "every step has the first one's guidance",
            "scales[min(step + 1, len(scales) - 1)]",
            "scales[0]",
            "each_step_has_the_guidance_of_its_own",
        ),
    ),
    *of(
        "toybox/handover.py",
        "test_marks",
        (
            "a picture is finished from a step too late",
            "steps - first + 0.5",
            "steps - first - 0.5",
            "a_picture_is_finished_from_the_step_asked_for_and_with_its_guidance",
        ),
    ),
    *of(
        "toybox/base_model.py",
        "test_training_base",
        (
            "no draw looks at the low timesteps",
            "choice >= 1 - self.recipe.low_share",
            "choice > 1",
            "timesteps_look_at_both_ends_and_weights_at_the_noisy_one",
        ),
    ),
    *of(
        "toybox/run.py",
        "test_training_base",
        (
            "a run that goes on forgets its recipe",
            "recipe or (recipe_of(state_of(newest)) if newest else Recipe())",
            "recipe or Recipe()",
            "from_committed_weights_a_run_counts_on_and_warms_its_optimizer_up",
        ),
    ),
    *of(
        "toybox/train_gpu.py",
        "test_train_gpu",
        (
            "scenes that are not there yet are drawn",
            "* self.count).long()",
            "* self.most).long()",
            "only_scenes_that_are_there_are_drawn_and_new_ones_as_they_come",
        ),
        (
            "the average jumps to the weights",
            "1 - decay**AVERAGE_EVERY)",
            "1 + decay**AVERAGE_EVERY)",
            "a_step_at_the_end_moves_nothing_and_the_average_follows",
        ),
    ),
    *of(
        "toybox/muon.py",
        "test_train_gpu",
        (
            "a stack is scaled as one matrix",
            "x.norm(dim=(-2, -1), keepdim=True)",
            "x.norm()",
            "equal_shapes_together_move_as_one_by_one",
        ),
    ),
    *of(
        "toybox/trials.py",
        "test_training_base",
        (
            "losses are told against each trial's own",
            "row[key] / rows[0][key]",
            "row[key] / row[key]",
            "trials_are_told_against_the_first_of_them",
        ),
    ),
    *of(
        "studies/reproduce/drawn.py",
        "test_studies",
        (
            "rows of any method are taken for one's",
            'key_with(row, words, flags.draw) == row["key"]',
            'bool(row["key"])',
            "pictures_are_found_by_the_method_that_drew_them",
        ),
        (
            "methods are compared over seeds that one of them has not",
            'if row["seed"] in seeds',
            'if row["seed"] >= 0',
            "methods_are_beside_each_other_by_the_seeds_that_all_of_them_have",
        ),
    ),
    *of(
        "studies/reproduce/ceiling.py",
        "test_studies",
        (
            "the truth is drawn in one style whatever is asked",
            "images, _ = drawings(subject, context, style, FIRST_POSE, POSES)",
            'images, _ = drawings(subject, context, "photo", FIRST_POSE, POSES)',
            "the_truth_is_measured_as_the_pictures_are",
        ),
    ),
    *of(
        "studies/reproduce/run.py",
        "test_reproduce",
        (
            "a plan overwrites the settings of the run before it",
            "if only_looks and (folder / CONFIG).is_file():",
            "if False:",
            "what_only_looks_leaves_the_settings_of_the_last_run",
        ),
    ),
    *of(
        "studies/reproduce/front.py",
        "test_front",
        (
            "a plain picture with less of the subject is a rival",
            "if identity >= point[0]",
            "if identity >= 0",
            "a_gain_is_over_the_best_text_of_no_less_identity",
        ),
        (
            "one subject's curve for all",
            "[curve[name] for curve in curves]",
            "[curve[max(curve)] for curve in curves]",
            "gains_are_paired_by_subject_and_say_how_many_would_tell",
        ),
    ),
    *of(
        "studies/reproduce/pace.py",
        "test_pace",
        (
            "a curve comes to a level at its next point",
            "share = (level - before.value) / (point.value - before.value)",
            "share = 1.0",
            "a_method_comes_to_the_level_between_two_points_of_its_curve",
        ),
        (
            "the work is that of a step",
            'cost["steps"] * cost["step_u"]',
            'cost["step_u"]',
            "a_line_a_method_says_when_and_its_share_of_the_work",
        ),
    ),
    *of(
        "studies/reproduce/rating.html",
        "test_rating_browser",
        (
            "answers are forgotten when the page is loaded again",
            "answers = kept.answers || {};",
            "answers = {};",
            "answers_are_kept_over_a_reload_and_downloaded_as_the_reader_wants_them",
        ),
        (
            "a quote in the rater's name ends the cell",
            """.replaceAll('"', '""')""",
            "",
            "answers_are_kept_over_a_reload_and_downloaded_as_the_reader_wants_them",
        ),
        (
            "left and right are changed over",
            "pair.pictures[0];",
            "pair.pictures[1];",
            "answers_are_kept_over_a_reload_and_downloaded_as_the_reader_wants_them",
        ),
        (
            "the last pair is not the last",
            "SHEET.pairs.length - 1);",
            "SHEET.pairs.length);",
            "the_first_and_the_last_pair_are_the_ends",
        ),
    ),
]
