"""The methods that the trainer knows: EqDiff and those that it is compared with.

`registry.py` has them by name. Which settings each of them changes is data of its own:
`eqdiff/settings/methods.py`.
"""
