"""Pictures of the insides of a concept, one command each: `python -m studies.insides.gate CONCEPT`.

bands        what each embedding brings (the paper's Fig. 2)
gate         whether RRA is alive: gate and reference attention before and after training
gate_steps   the gate over steps and layers of the sampling (Fig. 5)
warp         where reference attention looks (Fig. 8)
concepts     what they share
"""
