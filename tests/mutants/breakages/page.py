"""Breakages of the page in the browser and of the gallery: what is let in, told or shown."""

from .rows import of

PAGE = [
    *of(
        "app/commands.py",
        "test_app",
        (
            "free text of a form is a word of its own, so it can be a flag",
            'words.append(f"--{name}={text}")',
            'words += [f"--{name}", text]',
            "no_text_of_a_form_can_pass_for_a_flag_or_a_command",
        ),
        (
            "further settings may name files of the server",
            "closed = sorted(CLOSED & given.keys())",
            "closed = sorted(set() & given.keys())",
            "further_settings_open_no_door_to_the_disk",
        ),
        (
            "a comparison's page is not written anew with its marks",
            '["eval_eqdiff.py", "--samples", *names], page]',
            '["eval_eqdiff.py", "--samples", *names]]',
            "a_comparison_draws_alike_and_ends_with_a_page",
        ),
    ),
    *of(
        "app/workplace.py",
        "test_app",
        (
            "a bundled subject is had by any path",
            "require(name in bundled(),",
            "require(name is not None,",
            "no_bundled_subject_photo_or_concept_is_had_by_a_path",
        ),
        (
            "an upload's own name names the copy",
            "name = f\"{slug(file.stem, 'photo')}{file.suffix.lower()}\"",
            "name = file.name",
            "photos_are_copied_under_harmless_names_into_a_folder_of_their_own",
        ),
        (
            "photos of 200 million pixels are taken",
            "require(pixels <= MOST_PIXELS,",
            "require(pixels <= 3 * MOST_PIXELS,",
            "what_is_no_photo_is_one_line_that_tells_no_path_and_nothing_is_kept",
        ),
        (
            "an unreadable photo's place on the server is told",
            'UserError(f"{name}: not readable as a picture;',
            'UserError(f"{file}: not readable as a picture;',
            "what_is_no_photo_is_one_line_that_tells_no_path_and_nothing_is_kept",
        ),
        (
            "paint that adds forgets the mask that was there",
            "mask = (mask | _resized(added, size))",
            "mask = _resized(added, size)",
            "a_kept_mask_has_the_photos_size_and_what_was_painted",
        ),
    ),
    *of(
        "app/jobs.py",
        "test_app_queue",
        (
            "a job goes on after its first error",
            'if code or job.state == "stopped":',
            'if job.state == "stopped":',
            "jobs_run_one_at_a_time_in_their_order_and_end_at_their_first_error",
        ),
        (
            "a stopped job is not sent Ctrl-C, so a training does not save",
            "job.process.send_signal(signal.SIGINT)",
            "job.process.kill()",
            "stop_sends_ctrl_c_to_the_running_job_and_takes_a_waiting_one_out",
        ),
        (
            "the next server numbers its jobs from 1 again",
            "itertools.count(1 + max((job.number for job in jobs), default=0))",
            "itertools.count(1)",
            "a_job_that_waited_is_run_by_the_next_server_and_one_that_ran_is_stopped",
        ),
        (
            "a job that runs may be run again beside itself",
            "require(job and job.over, ",
            "require(job, ",
            "run_again_takes_what_is_over_alone",
        ),
    ),
    *of(
        "app/kept.py",
        "test_app_queue",
        (
            "a stranger's queue runs by itself in a copied folder",
            'job.state == "running" or not (job.over or is_own)',
            'job.state == "running"',
            "a_queue_in_a_copied_folder_waits_for_a_click",
        ),
        (
            "a stranger's queue shows any file of the machine as a log",
            "for place in (job.target, job.log):",
            "for place in (job.target,):",
            "a_kept_queue_that_is_none_is_a_warning_and_shows_no_file_of_others",
        ),
    ),
    *of(
        "eqdiff/gallery/page.py",
        "test_gallery",
        (
            "a prompt can end the element that holds the page's data",
            '.replace("<", "\\\\u003c")',
            '.replace("<", "<")',
            "nothing_that_a_run_says_is_read_as_html_and_only_our_script_may_run",
        ),
        (
            "the title is read as HTML",
            'title=clean(" | ".join(run.name for run in runs), "html")',
            'title=" | ".join(run.name for run in runs)',
            "nothing_that_a_run_says_is_read_as_html_and_only_our_script_may_run",
        ),
        (
            "a page of others is replaced",
            "if path.exists() and not (overwrite or is_ours(path)):",
            "if path.exists() and not (overwrite or path.is_file()):",
            "pages_and_pictures_of_others_stay_and_stale_ones_of_ours_go",
        ),
    ),
    *of(
        "eqdiff/gallery/pictures.py",
        "test_gallery",
        (
            "files of others beside a page's pictures are removed",
            "if path.is_file() and is_picture(path):",
            "if path.is_file():",
            "pages_and_pictures_of_others_stay_and_stale_ones_of_ours_go",
        ),
    ),
    *of(
        "eqdiff/gallery/found.py",
        "test_gallery",
        (
            "photos that a concept must not give away are in its page",
            'or settings.get("embed_reference") is False:',
            "or not settings:",
            "a_concept_that_must_not_give_photos_away_has_a_page_without_them",
        ),
    ),
    *of(
        "eqdiff/gallery/command.py",
        "test_gallery",
        (
            "the told command is not quoted for a shell",
            "else shlex.quote(word)",
            "else word",
            "the_commands_in_it_are_those_that_made_the_run",
        ),
    ),
    *of(
        "eqdiff/settings/places.py",
        "test_subjects",
        (
            "one bundled picture makes a folder of own photos a bundled subject",
            "all(_is_same(path, subject / path.name) for path in files)",
            "any(_is_same(path, subject / path.name) for path in files)",
            "a_copy_of_a_bundled_subject_is_known_and_nobody_elses_photo_passes_for_one",
        ),
    ),
]
