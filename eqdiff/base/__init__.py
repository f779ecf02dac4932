"""The base model: Stable Diffusion from a folder, a file or the hub."""
