"""Gaussian diffusion on tensors: schedules, targets, objective, denoisers, samplers, guidance."""
