"""The five sections of `ldm evidence`: each measures, draws its figure and says what was found."""

import time
from collections.abc import Iterator
from typing import Any

import open_clip
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ldm.commands import evidence_figures as figures
from ldm.commands import evidence_measures as measures
from ldm.commands.building import build
from ldm.commands.evidence_page import Claim
from ldm.commands.evidence_subject import Subject
from ldm.data import all_pictures
from ldm.diffusion import corrupt, log_snr
from ldm.metrics import CLIPScore, FrechetDistance, clip_scores, reference_statistics

SHOWN = 5  # pictures of each number of steps


def claims(subject: Subject, steps: list[int]) -> Iterator[Claim]:
    """All five, each as soon as it is measured."""
    yield noise_destroys(subject)
    yield network_predicts(subject)
    yield steps_cost_and_pay(subject, steps)
    yield text_steers(subject)
    yield latents_are_cheap(subject)


def noise_destroys(subject: Subject) -> Claim:
    """Forward diffusion: one picture's chain, SNR by time, and whether the end is only noise."""
    denoiser, latents = subject.trained.denoiser, subject.latents()
    schedule, noise = denoiser.schedule, measures.chain_noise(latents)
    chain = []
    for t in torch.linspace(0, 1, 9, device=subject.device):
        x_t = corrupt(schedule, latents[:1], noise[:1], t)
        ratio = float(log_snr(schedule, t.double()).exp())
        title = f"t = {float(t):.3g}\nSNR {'∞' if ratio > 1e4 else f'{ratio:.2g}'}"
        chain.append((title, subject.trained.codec.decode(x_t)[0]))
    times = torch.linspace(0.02, 1, 50, device=subject.device)
    found = measures.destruction(denoiser, latents, times)
    figures.forward(subject.out / "1-forward.png", chain, times.tolist(), found)
    end = corrupt(schedule, latents, noise, torch.ones((), device=subject.device))
    errors = measures.noise_tests(end, latents)
    chances = {name: measures.probability(value) for name, value in errors.items()}
    odd = min(chances, key=lambda name: chances[name])
    least = min(1.0, len(chances) * chances[odd])  # Bonferroni: one of five is often small
    verdict = "cannot be told from" if least > 0.05 else "can still be told from"
    return Claim(
        "Forward diffusion destroys the picture in known, controlled steps",
        "Training begins by ruining pictures on purpose: x_t = alpha(t) x_0 + sigma(t) noise, with "
        "t from 0 (the picture) to 1 (only noise). Nothing is learned here; how much signal is "
        "left at each t is a formula. Generating later means walking this road backwards, from "
        "noise that anybody can draw.",
        f"Top: one held-out picture at nine times, decoded from its noisy latents. Below, over "
        f"{len(latents)} pictures: the signal-to-noise ratio, how much of the picture is left, and "
        "how far x_t's likeness to its own picture and to its neighbouring cells lies from that of "
        "pure noise.",
        f"At t = 1 the latents {verdict} Gaussian noise: of five tests (mean, variance, "
        f"neighbouring cells, likeness to the own picture, shape of the distribution) on "
        f"{end.numel():,} numbers, the most suspicious is the {odd} with p = {chances[odd]:.2g} "
        f"({least:.2g} after correction for five tests).",
        "1-forward.png",
        {"t": times.tolist(), **found, "p at t = 1": chances},
    )


def network_predicts(subject: Subject) -> Claim:
    """Loss and error of the noise estimate by time, on held-out pictures, beside the best linear
    guess."""
    times = torch.linspace(0.05, 0.95, 19, device=subject.device)
    condition, latents = subject.condition(subject.captions), subject.latents()
    network = subject.trained.denoiser.network
    objective = build(subject.trained.config.diffusion, "diffusion")
    found = measures.prediction(objective, network, latents, condition, times)
    figures.prediction(
        subject.out / "2-prediction.png", _one_look(subject, latents), times.tolist(), found
    )
    ratio = sum(found["linear"]) / sum(found["noise"])
    better = sum(a < b for a, b in zip(found["noise"], found["linear"], strict=True))
    return Claim(
        "The network predicts the noise",
        "The one thing the network learns: shown x_t, t and the caption, say which noise is in it. "
        "Who knows the noise knows the picture, so whatever the network was trained to predict "
        "is shown here as both. At large t it can only guess what the caption suggests; at small t "
        "almost everything is visible. None of these pictures was trained on.",
        "Top: one held-out picture with noise, and the picture that the network believes to be "
        "behind it, in one pass. Below: the training's own loss by t, and the errors of noise and "
        "picture. The dashed line is the best guess without any network, which knows only that "
        "latents have mean 0 and variance 1.",
        f"On {len(latents)} held-out pictures the network's noise error is below the best linear "
        f"guess at {better} of {len(times)} times, and {ratio:.1f} times smaller over all.",
        "2-prediction.png",
        {"t": times.tolist(), **found},
    )


def _one_look(subject: Subject, latents: Tensor) -> list[list[tuple[str, Tensor]]]:
    """One picture with more and more noise, and what the network makes of each."""
    denoiser, codec = subject.trained.denoiser, subject.trained.codec
    noise, condition = measures.chain_noise(latents), subject.condition(subject.captions[:1])
    noisy, believed = [("the picture", subject.images[0])], [("decoded", codec.decode(latents)[0])]
    for t in torch.tensor([0.2, 0.4, 0.6, 0.8, 0.9, 1.0], device=subject.device):
        x_t = corrupt(denoiser.schedule, latents[:1], noise[:1], t)
        with torch.no_grad():
            guess = denoiser(x_t, t.expand(1), condition).x0
        noisy.append((f"noisy, t = {float(t):.1f}", codec.decode(x_t)[0]))
        believed.append(("believed", codec.decode(guess)[0]))
    return [noisy, believed]


def steps_cost_and_pay(subject: Subject, steps: list[int]) -> Claim:
    """Quality against steps and seconds, and the same seeds at each number of steps."""
    every = (batch["image"] for batch in all_pictures(subject.data, device=subject.device))
    reference = reference_statistics(subject.features, every, keep=0)
    real = float(measures.detail(subject.images).mean())
    subject.draw(subject.captions[: subject.arguments.batch_size], steps[0])  # the first is slow
    rows, shown = [], []
    for number in steps:
        pictures, seconds = _timed(subject, number)
        distance = FrechetDistance(subject.features, reference).to(subject.device)
        score = CLIPScore(subject.features).to(subject.device)
        distance.update(pictures, subject.captions)
        score.update(pictures, subject.captions)
        rows.append(
            {
                "steps": number,
                "seconds": seconds,
                "frechet": float(distance.compute()),
                "clip": float(score.compute()),
                "detail": float(measures.detail(pictures).mean()) / real,
            }
        )
        shown += list(pictures[:SHOWN])
    figures.steps(subject.out / "3-steps.png", rows, shown)
    first, last = rows[0], rows[-1]
    best = min(rows, key=lambda row: row["frechet"])
    return Claim(
        "More steps: slower but sharper",
        "A picture is made by walking from noise back to data in a number of steps, each one or "
        "two passes of the network. Few steps take long strides and cut corners: everything is an "
        "average of what might be there, and averages are blurred.",
        f"Left: the same seeds and prompts with {', '.join(map(str, steps))} steps. Right: the "
        "Fréchet distance to real pictures, the amount of fine detail beside that of real "
        f"pictures, and how well prompts fit; {len(subject.captions)} pictures a point. The "
        "distance of so few pictures is too large by an amount that is the same at every point.",
        f"From {first['steps']} to {last['steps']} steps a picture takes "
        f"{last['seconds'] / first['seconds']:.1f} times as long ({first['seconds']:.3f} s to "
        f"{last['seconds']:.3f} s); the Fréchet distance goes from {first['frechet']:.3g} to "
        f"{last['frechet']:.3g} (least at {best['steps']} steps: {best['frechet']:.3g}), and "
        f"fine detail from {first['detail']:.0%} to {last['detail']:.0%} of real pictures'.",
        "3-steps.png",
        {"rows": rows},
    )


def _timed(subject: Subject, steps: int) -> tuple[Tensor, float]:
    """Pictures, and seconds a picture of the fastest batch: other work slows some of them."""
    size, parts, seconds = subject.arguments.batch_size, [], []
    for start in range(0, len(subject.captions), size):
        prompts = subject.captions[start : start + size]
        began = time.perf_counter()
        parts.append(subject.draw(prompts, steps, first_seed=start).cpu())
        seconds.append((time.perf_counter() - began) / len(prompts))
    return torch.cat(parts).to(subject.device), min(seconds)


def text_steers(subject: Subject) -> Claim:
    """CLIP score with the right, a shuffled and no prompt, and where the words look."""
    captions = subject.captions
    right, none = subject.draw(captions), subject.draw([""] * len(captions))
    half = len(captions) // 2
    shuffled = captions[half:] + captions[:half]
    judged = {
        "right prompt": clip_scores(subject.features, right, captions),
        "another's prompt": clip_scores(subject.features, right, shuffled),
        "no prompt": clip_scores(subject.features, none, captions),
    }
    intervals = {name: measures.interval(scores) for name, scores in judged.items()}
    gain = measures.interval(judged["right prompt"] - judged["another's prompt"])
    path = subject.out / "4-text.png"
    maps = [found for prompt in _looked_at(subject) if (found := _attention(subject, prompt))]
    figures.text(path, intervals, maps)
    sure = "so the text steers the picture" if gain.mean > gain.half else "which may be chance"
    own, other = intervals["right prompt"].mean, intervals["another's prompt"].mean
    watched = (
        " Below, for each prompt, the picture and a map a word: bright places attended to that "
        "word more than other places did, over all layers and steps."
        if maps
        else " This network has no cross-attention whose maps could be shown."
    )
    return Claim(
        "Text steers the picture",
        "The caption enters the network as a row of token vectors, to which each place of the "
        "picture attends. If the text steers, pictures fit their own prompt better than someone "
        "else's, and better than pictures drawn without a prompt do.",
        "CLIP score (0 to 100) of pictures with the prompt they were drawn from, of the same "
        "pictures with the prompt of another, and of pictures drawn with the empty prompt."
        + watched,
        f"{len(captions)} pictures score {own:.1f} with their own prompt and {other:.1f} with "
        f"another's: a difference of {gain.mean:.1f} ± {gain.half:.1f}, {sure}.",
        "4-text.png",
        {name: i._asdict() for name, i in {**intervals, "difference": gain}.items()},
    )


def _looked_at(subject: Subject) -> list[str]:
    """The asked prompt, or two captions of many words."""
    if subject.arguments.prompt:
        return [subject.arguments.prompt]
    by_words = sorted(dict.fromkeys(subject.captions), key=lambda c: abs(len(c.split()) - 4))
    return by_words[:2]


def _attention(subject: Subject, prompt: str) -> tuple[Tensor, list[tuple[str, Tensor]]] | None:
    """The picture and a map a word; None where the network or the text encoder has none."""
    encoder = subject.trained.config.text.encoder._target_
    if not encoder.endswith("OpenClipCaptions"):
        return None
    side = subject.images.shape[-1]
    with measures.AttentionWatch(subject.trained.denoiser.network, 1, side) as watch:
        picture = subject.draw([prompt])[0]
    if watch.total is None:
        return None
    pairs = open_clip.SimpleTokenizer()
    lengths = [len(pairs.encode(word)) for word in prompt.lower().split()]
    places = measures.word_places(prompt, lengths)
    maps = [
        (word, watch.total[0, at].mean(0)) for word, at in places if at.stop < watch.total.shape[1]
    ]
    return picture, maps


def latents_are_cheap(subject: Subject) -> Claim:
    """The same backbone on pixels and on latents of equal pictures: one training step."""
    config, rows = subject.trained.config, min(8, len(subject.images))
    condition = subject.condition(subject.captions[:rows])
    objective = build(config.diffusion, "diffusion")
    with FlopCounterMode(display=False) as counter:
        latents = subject.latents(rows)
    spaces = {"latent": latents, "pixel": subject.images[:rows]}
    costs = {}
    for space, data in spaces.items():
        network = build(_for_space(config, data), "backbone").to(subject.device)
        costs[space] = measures.training_cost(network, objective, data, condition)
    pixel, latent = costs["pixel"], costs["latent"]
    bars = [
        ("GFLOP a step", pixel.flops / 1e9, latent.flops / 1e9),
        ("seconds a step", pixel.seconds, latent.seconds),
        ("MB of activations", pixel.bytes / 1e6, latent.bytes / 1e6),
    ]
    figures.cost(subject.out / "5-cost.png", bars)
    shapes = {name: "x".join(map(str, data.shape[1:])) for name, data in spaces.items()}
    encoding = counter.get_total_flops()
    return Claim(
        "Latent space is far cheaper than pixels",
        "The autoencoder shrinks a picture before the diffusion ever sees it, and the backbone's "
        "work grows with the number of cells it looks at. The price is encoding each picture, "
        "which can be done once and kept.",
        f"The same backbone with fresh weights on the same {rows} pictures: as pixels "
        f"({shapes['pixel']}) and as latents ({shapes['latent']}). One training step, forward and "
        "backward, in float32, measured on this machine; memory is what the forward pass keeps "
        "for the backward one.",
        f"A step in pixel space takes {pixel.flops / latent.flops:.1f} times the arithmetic, "
        f"{pixel.seconds / latent.seconds:.1f} times the time and "
        f"{pixel.bytes / latent.bytes:.1f} times the memory for activations. Encoding the "
        f"pictures costs {encoding / latent.flops:.2f} latent steps' arithmetic, once.",
        "5-cost.png",
        {**{name: cost._asdict() for name, cost in costs.items()}, "encoding flops": encoding},
    )


def _for_space(config: Any, data: Tensor) -> Any:
    """The backbone's configuration for pictures or latents of this shape."""
    backbone = config.backbone.copy()
    backbone.in_channels = data.shape[1]
    if backbone.get("out_channels") is not None:
        ratio = backbone.out_channels // config.backbone.in_channels  # 2 with a learned variance
        backbone.out_channels = ratio * data.shape[1]
    for key in ("grid", "base"):  # places of the position codes
        if backbone.get(key) is not None:
            backbone[key] = data.shape[-1]
    return backbone
