"""EqDiff, Equilibrated Diffusion: teaches Stable Diffusion 1.x a subject from a few photos.

A few photos and a class word are enough: prompts with new backgrounds and new styles then work,
and the subject stays itself.

The files of this folder are the paper. Read these ten and you know the method:

    Sec. 3,   Eq. 3-4   frequency.py       low pass, high pass; the draw of a band (Eq. 5)
    Sec. 4.1, Eq. 5     tokens.py          FDTE: S_LF, S_HF, S_ori, and their place in the caption
    Sec. 4.2, Eq. 6-7   masking.py         MGDP: masked noising, masked loss; masks on coarser grids
    Sec. 4.3, Eq. 8-9   attention.py       RRA: reference attention, its gate, the blend
    Sec. 4.3, Eq. 10    attention_loss.py  the reference-attention loss
    Sec. 4.3            reference.py       F^r of the frozen UNet, and its cache over a schedule
    the algorithm       batch.py           all that is random in a step: photo, b, t, eps, reference
                        objective.py       Batch -> loss, line by line, with the paper's symbols
                        model.py           what is frozen, and the one list of what is trained
                        pipeline.py        concept and prompts -> images

Each says at its top where it departs from the paper. Five files are the ground that these stand on:

    processors.py   Stable Diffusion's attention with three doors for a method; install, remove
    context.py      what one call of the UNet knows of the reference, and what it reports
    sampler.py      what happens around each call of the UNet while an image is drawn
    start.py        where the token rows start
    method.py       how a method, this one or another, is handed to the trainer

The other files are small rules that all share. errors.py and wording.py: one line for a user's
error, and what of a stranger's text is shown. files.py: one atomic write. ours.py: which files in a
folder are ours. finite.py: no value that is none is written or shown. reader.py: which prompts name
the subject. processes.py: one process among several.
Everything else has a folder:

    settings    what can be set, with units, ranges and presets; nothing heavy is imported there
    data        photos and their masks -> square tensors -> latents
    masks       masks for photos that have none
    base        Stable Diffusion as it comes, and what of a stranger's folder may be loaded
    methods     EqDiff and what it is compared with, by name: `--method`
    concept     the concept file: written, checked, made small, exported, described
    training    around the loop: class images, checkpoints, the output folder, guards, signals
    drawing     a concept put into a pipeline and taken out again; the arguments of a call
    sampling    around the pipeline: jobs, references, the folder of images, the safety checker;
                DCI, DreamMatcher and FreeCustom, which work over any concept
    gallery     a page of a run, or of several side by side, that opens from disk
    process     Ctrl-C at any moment, who stops listening, whose launcher is gone
    evaluation  CLIP-T, CLIP-I, DINO-I, colours and parts; means, tables, curves

Imports form a ladder, which tests/test_repo.py knows. Importing the package alone is quick.
"""

__version__ = "0.1.0.dev0"
