"""The numbers behind `ldm evidence`: what noise does, what the network knows, what text does, and
what a step costs. Each function returns plain numbers; the figures are drawn elsewhere."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ldm.diffusion import Denoiser, Objective, Schedule, corrupt, log_snr
from ldm.models.attention import CrossAttention
from ldm.types import Condition, Draws, Image, Latent, draws_for_seeds


class Interval(NamedTuple):
    """A mean and the half width of its 95 % confidence interval."""

    mean: float
    half: float


def interval(values: Tensor) -> Interval:
    """Of independent values, by their standard error."""
    error = float(values.double().std()) / math.sqrt(len(values))
    return Interval(float(values.double().mean()), 1.96 * error)


def destruction(denoiser: Denoiser, latents: Latent, times: Tensor) -> dict[str, list[float]]:
    """For each time: log10 SNR (cut at +-20), correlation of x_t with the data, and each of
    `noise_tests` in standard errors."""
    noise = chain_noise(latents)
    found: dict[str, list[float]] = {"log10_snr": [], "correlation": []}
    for t in times:
        x_t = corrupt(denoiser.schedule, latents, noise, t)
        both = torch.stack([x_t.flatten(), latents.flatten()]).double()
        ratio = float(log_snr(denoiser.schedule, t.double())) / math.log(10)
        found["log10_snr"].append(min(max(ratio, -20.0), 20.0))
        found["correlation"].append(float(both.corrcoef()[0, 1]))
        for name, errors in noise_tests(x_t, latents).items():
            found.setdefault(name, []).append(errors)
    return found


def chain_noise(latents: Latent) -> Latent:
    """The noise that the pictures are destroyed with, one seed a picture."""
    draws = draws_for_seeds(range(len(latents)), latents.device)
    return draws.normal(latents.shape[1:], "chain")


def noise_tests(x: Latent, latents: Latent) -> dict[str, float]:
    """How many standard errors each statistic of x lies from what independent standard normal
    numbers would give: their mean, their variance, the product of neighbours in a row and in a
    column, the product with the pictures' own latents, and the shape of their distribution
    (Kolmogorov's test, its probability told as the normal's)."""
    x, latents = x.double(), latents.double()
    rows, columns = x[..., :-1] * x[..., 1:], x[..., :-1, :] * x[..., 1:, :]
    neighbours = torch.cat([rows.flatten(), columns.flatten()])
    errors = {
        "mean": x.mean() * math.sqrt(x.numel()),
        "variance": (x.square().mean() - 1) * math.sqrt(x.numel() / 2),
        "neighbours": neighbours.sum() / math.sqrt(max(len(neighbours), 1)),
        "own picture": (x * latents).sum() / latents.square().sum().sqrt(),
    }
    shape = kolmogorov_probability(kolmogorov(x.flatten()))
    of_shape = -torch.special.ndtri(torch.tensor(max(shape, 1e-300), dtype=torch.float64) / 2)
    return {**{name: float(value) for name, value in errors.items()}, "shape": float(of_shape)}


def probability(errors: float) -> float:
    """Of a standard normal number at least so far from 0."""
    return math.erfc(abs(errors) / math.sqrt(2))


def kolmogorov(values: Tensor) -> float:
    """sqrt(n) max |empirical distribution - standard normal distribution|."""
    ordered = values.double().sort().values
    normal = torch.special.ndtr(ordered)
    n = len(ordered)
    steps = torch.arange(n + 1, dtype=torch.float64, device=values.device) / n
    largest = torch.maximum((steps[1:] - normal).abs().max(), (normal - steps[:-1]).abs().max())
    return float(largest) * math.sqrt(n)


def kolmogorov_probability(statistic: float) -> float:
    """Of at least this sqrt(n) D by chance, for many values (Kolmogorov 1933)."""
    if statistic < 0.2:  # the series converges slowly, and the answer is 1 to twelve digits
        return 1.0
    terms = (2 * (-1) ** (k - 1) * math.exp(-2 * (k * statistic) ** 2) for k in range(1, 101))
    return min(max(sum(terms), 0.0), 1.0)


@dataclass(frozen=True)
class At:
    """All training at one time."""

    t: float

    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        """The time."""
        return torch.full_like(u, self.t)


def prediction(
    objective: Objective, network: Any, latents: Latent, condition: Condition, times: Tensor
) -> dict[str, list[float]]:
    """For each time the training's own loss with the half width of its 95 % confidence interval,
    the mean squared error of the noise's and of the data's estimate, and of the best linear
    estimate of the noise from x_t alone, alpha^2 / (alpha^2 + sigma^2)."""
    denoiser = objective.denoiser(network)
    draws = draws_for_seeds(range(len(latents)), latents.device)
    noise = draws.normal(latents.shape[1:], "held")
    found: dict[str, list[float]] = {
        name: [] for name in ("loss", "loss_half", "noise", "data", "linear")
    }
    for t in times:
        x_t = corrupt(denoiser.schedule, latents, noise, t)
        with torch.no_grad():
            estimate = denoiser(x_t, t.expand(len(latents)), condition)
            at_t = replace(objective, times=At(float(t)))
            losses = interval(at_t(network, latents, condition, draws))
        alpha, sigma = (float(x) for x in denoiser.schedule(t))
        found["loss"].append(losses.mean)
        found["loss_half"].append(losses.half)
        found["noise"].append(float((estimate.noise - noise).square().mean()))
        found["data"].append(float((estimate.x0 - latents).square().mean()))
        found["linear"].append(alpha**2 / (alpha**2 + sigma**2))
    return found


def detail(images: Image) -> Tensor:
    """`[b]`: mean absolute Laplacian of each picture's brightness, which blur makes smaller."""
    grey = images.float().mean(1, keepdim=True)
    kernel = grey.new_tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])
    return torch.nn.functional.conv2d(grey, kernel[None, None]).abs().mean(dim=(1, 2, 3))


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
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            kind = module.query.weight.dtype
            self._add(module, x.to(kind), tokens.to(kind), mask)

    def _add(self, module: CrossAttention, x: Tensor, tokens: Tensor, mask: Tensor | None) -> None:
        query = module.query_norm(module.query(x).unflatten(-1, (module.heads, -1)))
        key = module.key_value(tokens).unflatten(-1, (2, module.heads, -1)).unbind(2)[0]
        fit = torch.einsum("bnhd,blhd->bhnl", query, module.key_norm(key))
        fit = fit.float() / query.shape[-1] ** 0.5
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
