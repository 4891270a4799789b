"""The numbers behind `ldm evidence`: what noise does, what the network knows, what text does, and
what a step costs. Each function returns plain numbers; the figures are drawn elsewhere."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ldm.diffusion import Denoiser, corrupt, log_snr
from ldm.models.attention import CrossAttention
from ldm.types import Condition, Draws, Latent, draws_for_seeds


class Interval(NamedTuple):
    """A mean and the half width of its 95 % confidence interval."""

    mean: float
    half: float


def interval(values: Tensor) -> Interval:
    """Of independent values, by their standard error."""
    error = float(values.double().std()) / math.sqrt(len(values))
    return Interval(float(values.double().mean()), 1.96 * error)


def destruction(denoiser: Denoiser, latents: Latent, times: Tensor) -> dict[str, list[float]]:
    """For each time: log10 SNR (cut at +-20), correlation of x_t with the data, and Kolmogorov's
    sqrt(n) D between x_t and a standard normal (below 1.36 nothing tells them apart at 5 %)."""
    noise = draws_for_seeds(range(len(latents)), latents.device).normal(latents.shape[1:], "chain")
    found: dict[str, list[float]] = {"log10_snr": [], "correlation": [], "kolmogorov": []}
    for t in times:
        x_t = corrupt(denoiser.schedule, latents, noise, t)
        both = torch.stack([x_t.flatten(), latents.flatten()]).double()
        ratio = float(log_snr(denoiser.schedule, t.double())) / math.log(10)
        found["log10_snr"].append(min(max(ratio, -20.0), 20.0))
        found["correlation"].append(float(both.corrcoef()[0, 1]))
        found["kolmogorov"].append(kolmogorov(x_t.flatten()))
    return found


def kolmogorov(values: Tensor) -> float:
    """sqrt(n) max |empirical distribution - standard normal distribution|."""
    ordered = values.double().sort().values
    normal = torch.special.ndtr(ordered)
    n = len(ordered)
    steps = torch.arange(n + 1, dtype=torch.float64, device=values.device) / n
    largest = torch.maximum((steps[1:] - normal).abs().max(), (normal - steps[:-1]).abs().max())
    return float(largest) * math.sqrt(n)


def prediction(
    denoiser: Denoiser, latents: Latent, condition: Condition, times: Tensor
) -> dict[str, list[float]]:
    """For each time the mean squared error of the noise's and of the data's estimate, and of the
    best linear estimate of the noise from x_t alone, alpha^2 / (alpha^2 + sigma^2)."""
    noise = draws_for_seeds(range(len(latents)), latents.device).normal(latents.shape[1:], "held")
    found: dict[str, list[float]] = {"noise": [], "data": [], "linear": []}
    for t in times:
        x_t = corrupt(denoiser.schedule, latents, noise, t)
        with torch.no_grad():
            estimate = denoiser(x_t, t.expand(len(latents)), condition)
        alpha, sigma = (float(x) for x in denoiser.schedule(t))
        found["noise"].append(float((estimate.noise - noise).square().mean()))
        found["data"].append(float((estimate.x0 - latents).square().mean()))
        found["linear"].append(alpha**2 / (alpha**2 + sigma**2))
    return found


class AttentionWatch:
    """Sums, while it is open, what each cross-attention of a network looks at: maps `[b l s s]`
    brought to one size, of the conditional half of a guided batch."""

    def __init__(self, network: torch.nn.Module, rows: int, side: int) -> None:
        self.network, self.rows, self.side = network, rows, side
        self.total: Tensor | None = None
        self.handles: list[Any] = []

    def __enter__(self) -> "AttentionWatch":
        for module in self.network.modules():
            if isinstance(module, CrossAttention):  # the maps are its alone to give
                self.handles.append(module.register_forward_hook(self._see))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _see(self, module: CrossAttention, inputs: tuple[Any, ...], _: Any) -> None:
        x, tokens, mask = (*inputs, None)[:3]
        query = module.query_norm(module.query(x).unflatten(-1, (module.heads, -1)))
        key = module.key_value(tokens).unflatten(-1, (2, module.heads, -1)).unbind(2)[0]
        fit = torch.einsum("bnhd,blhd->bhnl", query.float(), module.key_norm(key).float())
        fit = fit / query.shape[-1] ** 0.5
        if mask is not None:
            fit = fit.masked_fill(~mask[:, None, None], -torch.inf)
        weights = fit.softmax(-1).mean(1)[: self.rows]  # `Guided` puts the condition first
        side = math.isqrt(weights.shape[1])
        if side**2 != weights.shape[1]:
            return
        maps = weights.transpose(1, 2).unflatten(-1, (side, side))
        maps = torch.nn.functional.interpolate(maps, (self.side, self.side), mode="bilinear")
        self.total = maps if self.total is None else self.total + maps


class Cost(NamedTuple):
    """One training step of one batch: floating-point operations, seconds, and bytes of activations
    kept for the backward pass."""

    flops: int
    seconds: float
    bytes: int


def training_cost(
    network: Any,
    objective: Callable[..., Tensor],
    latents: Latent,
    condition: Condition,
    repeats: int = 3,
) -> Cost:
    """Measured on this machine: the fastest of `repeats` steps, forward and backward."""
    draws = Draws(0, 0, range(len(latents)), len(latents), latents.device)

    def step() -> None:
        loss = objective(network, latents, condition, draws).mean()
        torch.autograd.backward(loss)
        network.zero_grad(set_to_none=True)

    with FlopCounterMode(display=False) as counter:
        step()
    kept = _bytes_for_backward(lambda: objective(network, latents, condition, draws))
    times = []
    for _ in range(repeats):
        _finish(latents.device)
        began = time.perf_counter()
        step()
        _finish(latents.device)
        times.append(time.perf_counter() - began)
    return Cost(counter.get_total_flops(), min(times), kept)


def _bytes_for_backward(forward: Callable[[], Tensor]) -> int:
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = forward()  # alive until all is counted, so that no address is used twice
    total = sum(storages.values())
    del loss
    return total


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def word_places(prompt: str, lengths: Sequence[int]) -> list[tuple[str, slice]]:
    """Each word with the places of its tokens, when token 0 is the start."""
    places, start = [], 1
    for word, length in zip(prompt.split(), lengths, strict=True):
        places.append((word, slice(start, start + length)))
        start += length
    return places
