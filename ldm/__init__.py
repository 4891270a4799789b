"""Latent diffusion models on PyTorch Lightning: both stages, from pictures to prompted samples."""
