"""What training and drawing cost: work, time and memory.

Each file is a command, such as `python -m benchmarks.step --help`.

count                    the work at Stable Diffusion 1.4's sizes, counted on the meta device
activations, sd14        what a step holds beside the weights; one step of each kind, at those sizes
step, sample, memory     time and memory, of ours and of what it is compared with
page, gallery            how soon a click is answered, how fast a gallery opens, in a browser
growth, soak             how cost grows with each size; whether memory stays flat
bit_exact                whether a change of the code changed a bit of what it makes
house_measures           how the code reads: its air, its width, its density
common, workload, browser  what they share; counting, counting_growth: what count.py runs
toybox_quality           a door to studies/quality

results.jsonl has a line for each run, with the machine, the commit and the libraries' versions.
"""
