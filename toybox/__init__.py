"""The toybox: a small drawn world of 128x128 pictures with exact subject masks and captions.

instances   what tells subjects apart: colours, pattern, emblem, shape; tables train, dev, test
markings    patterns and emblems
canvas      what parts are drawn on
classes     ten subject classes, each a function that draws its parts; RGBA sprites
contexts    ten places, each a function that draws a background
styles      eight styles, each a function picture -> picture
captions    training captions and the canonical prompts for evaluation
world       scenes: instance x context x style x pose -> picture, mask; held-out triples and pairs

All of these are deterministic: a picture depends on its `world.Scene` alone. They need numpy and
Pillow only.

dataset, latents         drawn pictures on disk; what the base is trained on: seeds and latents
tokenizer, train_vae     the base's first parts
judge, clip, dino        the instruments: they name what is seen, compare, and recognize
vision, train_judges     what CLIP and DINO share, and their training; `judges` loads all three
loop, muon, schedule     what all trainings share: the loop, the optimizer, the rates
base_model, trials       the base's parts and loss; recipes compared at equal processor time
speed                    ways to compute a step compared
run, train_base          the long run, in the cache and in the background
quality, truth, marks    pictures of captions, their truth, and how good a base is
guidance                 which guidance a base draws best with
customization            how good a concept is on a base
publish, curve           weights and marks into the checkout; the marks against samples
sheets, make_subjects    contact sheets of pictures; the bundled subjects
"""
