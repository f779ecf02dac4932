"""From photo files to tensors, and from tensors to latents."""
