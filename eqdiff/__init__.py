"""EqDiff, Equilibrated Diffusion: a few photos of one subject and a class word teach Stable Diffusion 1.x that subject,
so that prompts with new backgrounds and new styles work while the subject stays itself.

Where the paper lives in the code:

    Sec. 3,   Eq. 3-5   frequency.py   low / high pass, the draw of a band
    Sec. 4.1, Eq. 5     tokens.py      FDTE: the learned embeddings and their injection into the text encoder
    Sec. 4.2, Eq. 6-7   masking.py     MGDP: dilation, masked noising, masked loss
    Sec. 4.3, Eq. 8-9   attention.py   RRA: the processor, its gate; install / remove
    Sec. 4.3, Eq. 10    attention_loss.py  the reference-attention loss
    Sec. 4.3            reference.py   the frozen UNet: features by layer name, the cache over a sampling schedule
    the algorithm box   objective.py   Batch -> loss, line by line, with the paper's symbols

and around it:

    config.py      the settings with their units, the presets, the command line (options.py makes it); prompts.py;
                   sample_config.py: those of drawing
    pictures.py    a picture file -> upright pixels; photos.py: a folder's photos and masks
    data.py        a folder -> square tensors; reference augmentation; contact sheets
    mask_maker.py  masks for the photos that have none (mask_config.py: its settings), by one of
    segment.py     GroundingDINO and SAM 2, from the class word
    grabcut.py     no model: what the photos have in common, and GrabCut
    latent_masks.py  the photos' masks at the size of the latents
    latents.py     what the VAE encodes once, and everything random in a step: the Batch; live.py: the same, each step
    encoding.py    what the VAE says, kept on disk by content
    base.py        loads SD 1.x and 2.x: folder, hub id or single file; layouts.py: what lies there
    model.py       freezes it, puts the subject's parts in, owns the one list of what is trained
    estimate.py    the memory that a training will want
    prior.py       class images, made by the base itself
    concept.py     concept.safetensors <-> model; compress.py: in few bytes, low-rank; concept_file.py: what is checked
                   before a file is loaded
    export.py      a concept as files that plain tools read; card.py: the model card; export_config.py: its settings
    checkpoint.py  concept + optimizer + step, to go on from; run_folder.py: what may begin, go on or be cleared there
    running.py     the lock on an output folder, signals; guard.py: numbers that are not finite, memory, dead gates
    launch.py      several processes, by torchrun
    pipeline.py    concept and prompts -> images; safety.py: the base's own safety checker; samples.py: their folder
    setup.py       what a training starts from; previews; curves.py: what trackers are told of it
    metrics.py     CLIP-T, CLIP-I, DINO-I; evaluation.py: what they are taken of; report.py: means, table, curve

Imports form a ladder: frequency, tokens, masking and attention are leaves; reference stands on attention, model on
those, objective and concept on model, pipeline on concept. Importing the package itself loads nothing heavy.
"""
