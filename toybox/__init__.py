"""The toybox: a small drawn world of 128x128 pictures with exact subject masks and captions.

instances   who the subject is: colours, pattern, emblem, shape, proportions; tables train, dev, test
markings    patterns and emblems
classes     ten subject classes, each a function that draws its parts; RGBA sprites
contexts    ten places, each a function that draws a background
styles      eight styles, each a function picture -> picture
captions    training captions and the canonical prompts for evaluation
world       scenes: instance x context x style x pose -> picture, mask; held-out triples; contact sheet

Everything is deterministic: a picture depends on its `world.Scene` alone. Only numpy and Pillow are needed.
"""
