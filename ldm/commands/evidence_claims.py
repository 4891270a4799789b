"""The five sections of `ldm evidence`: each measures, draws its figure and says what was found."""

import time
from collections.abc import Iterator

import open_clip
import torch
from matplotlib.figure import Figure

from ldm.commands import evidence_measures as measures
from ldm.commands.building import build
from ldm.commands.evidence import Claim
from ldm.commands.evidence_subject import Subject
from ldm.data import normalise, validation_batches
from ldm.diffusion import corrupt
from ldm.generate import grid, save_png
from ldm.metrics import CLIPScore, FrechetDistance, clip_scores, reference_statistics
from ldm.types import draws_for_seeds


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
    shown = torch.linspace(0, 1, 9, device=subject.device)
    noise = draws_for_seeds([0], subject.device).normal(latents.shape[1:], "chain")
    chain = [corrupt(denoiser.schedule, latents[:1], noise, t) for t in shown]
    pictures = [subject.trained.codec.decode(x)[0] for x in chain]
    save_png(grid(pictures, len(pictures)), subject.out / "1-chain.png", {"times": shown.tolist()})
    times = torch.linspace(0.02, 1, 50, device=subject.device)
    found = measures.destruction(denoiser, latents, times)
    figure = Figure(figsize=(9, 3), layout="constrained")
    snr, correlation, distance = figure.subplots(1, 3)
    snr.plot(times.cpu(), [min(max(x, -4), 4) for x in found["log10_snr"]])
    snr.set(title="log10 signal-to-noise ratio (cut at ±4)", xlabel="t")
    correlation.plot(times.cpu(), found["correlation"])
    correlation.set(title="correlation of x_t with the data", xlabel="t")
    distance.semilogy(times.cpu(), found["kolmogorov"])
    distance.axhline(1.36, linestyle="--", color="0.5")
    distance.set(title="distance from Gaussian noise (dashed: 5 %)", xlabel="t")
    figure.savefig(subject.out / "1-destruction.png", dpi=130)
    last, left = found["kolmogorov"][-1], found["correlation"][-1]
    verdict = "cannot be told" if last < 1.36 else "can still be told"
    return Claim(
        "Forward diffusion destroys the picture in known, controlled steps",
        "Training begins by ruining pictures on purpose: x_t = alpha(t) x_0 + sigma(t) noise, with "
        "t from 0 (the picture) to 1 (only noise). Nothing is learned here; how much signal is "
        "left at each t is a formula. Generating later means walking this road backwards.",
        f"At t = 1 the latents {verdict} from Gaussian noise: Kolmogorov's sqrt(n) D = {last:.2f} "
        f"(below 1.36 is chance at the 5 % level), correlation with the data {left:+.3f}.",
        ("1-chain.png", "1-destruction.png"),
        {"t": times.tolist(), **found},
    )


def network_predicts(subject: Subject) -> Claim:
    """Error of the noise estimate by time, on held-out pictures, beside the best linear guess."""
    times = torch.linspace(0.05, 0.95, 19, device=subject.device)
    condition = subject.condition(subject.captions)
    found = measures.prediction(subject.trained.denoiser, subject.latents(), condition, times)
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    noise, data = figure.subplots(1, 2)
    noise.semilogy(times.cpu(), found["noise"], label="network")
    noise.semilogy(times.cpu(), found["linear"], "--", label="best linear guess")
    noise.set(title="squared error of the predicted noise", xlabel="t")
    noise.legend()
    data.semilogy(times.cpu(), found["data"], label="network")
    data.semilogy(times.cpu(), [1 - x for x in found["linear"]], "--", label="best linear guess")
    data.set(title="squared error of the predicted picture (latent)", xlabel="t")
    data.legend()
    figure.savefig(subject.out / "2-prediction.png", dpi=130)
    ratio = sum(found["linear"]) / sum(found["noise"])
    better = sum(a < b for a, b in zip(found["noise"], found["linear"], strict=True))
    return Claim(
        "The network predicts the noise",
        "The one thing the network learns: shown x_t, t and the caption, say which noise is in it. "
        "Noise and picture follow from each other, so whatever the network was trained to predict "
        "is shown here as both. The dashed line is the best guess without any network, which knows "
        "only that latents have mean 0 and variance 1. These pictures were never trained on.",
        f"On held-out pictures the network's noise error is below the best linear guess at "
        f"{better} of {len(times)} times, and {ratio:.1f} times smaller over all.",
        ("2-prediction.png",),
        {"t": times.tolist(), **found},
    )


def steps_cost_and_pay(subject: Subject, steps: list[int]) -> Claim:
    """Quality against steps and seconds, and the same seeds at each number of steps."""
    batches = validation_batches(subject.data, batch=64, rank=0, world=1, workers=0)
    images = (normalise(batch["image"].to(subject.device)) for batch in batches)
    reference = reference_statistics(subject.features, images, keep=0)
    subject.draw(subject.captions, steps[0])  # first calls are slow, and are not timed
    rows, shown = [], []
    for number in steps:
        began = time.perf_counter()
        pictures = subject.draw(subject.captions, number)
        seconds = (time.perf_counter() - began) / len(pictures)
        distance = FrechetDistance(subject.features, reference).to(subject.device)
        score = CLIPScore(subject.features).to(subject.device)
        distance.update(pictures, subject.captions)
        score.update(pictures, subject.captions)
        rows.append((number, seconds, float(distance.compute()), float(score.compute())))
        shown += list(pictures[:8])
    save_png(grid(shown, 8), subject.out / "3-by-steps.png", {"steps": steps})
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    by_steps, by_seconds, scores = figure.subplots(1, 3)
    numbers, seconds_, distances, clip = zip(*rows, strict=True)
    by_steps.plot(numbers, distances, "o-")
    by_steps.set(title="Fréchet distance", xlabel="steps", xscale="log", ylim=(0, None))
    by_seconds.plot(seconds_, distances, "o-")
    by_seconds.set(title="Fréchet distance", xlabel="seconds a picture", ylim=(0, None))
    scores.plot(numbers, clip, "o-")
    scores.set(title="CLIP score", xlabel="steps", xscale="log")
    figure.savefig(subject.out / "3-steps.png", dpi=130)
    first, last = rows[0], rows[-1]
    best = min(rows, key=lambda row: row[2])
    return Claim(
        "More steps: slower but sharper",
        "A picture is made by walking from noise back to data in a number of steps, each one or "
        "two passes of the network. Few steps take long strides and cut corners. Each row of "
        f"pictures has the same seeds and prompts, with {', '.join(map(str, steps))} steps from "
        "top "
        "to bottom. The Fréchet distance compares the set with real pictures; smaller is better.",
        f"From {first[0]} to {last[0]} steps a picture takes {last[1] / first[1]:.1f} times as "
        f"long ({first[1]:.3f} s to {last[1]:.3f} s), and the Fréchet distance goes from "
        f"{first[2]:.3g} to {last[2]:.3g}; the best of these is {best[0]} steps with "
        f"{best[2]:.3g}.",
        ("3-steps.png", "3-by-steps.png"),
        {
            "rows": [
                dict(zip(("steps", "seconds", "frechet", "clip"), r, strict=True)) for r in rows
            ]
        },
    )


def text_steers(subject: Subject) -> Claim:
    """CLIP score with the right, a shuffled and no prompt, and where the words look."""
    captions = subject.captions
    right = subject.draw(captions)
    none = subject.draw([""] * len(captions))
    half = len(captions) // 2
    shuffled = captions[half:] + captions[:half]
    judged = {
        "right prompt": clip_scores(subject.features, right, captions),
        "another's prompt": clip_scores(subject.features, right, shuffled),
        "no prompt": clip_scores(subject.features, none, captions),
    }
    intervals = {name: measures.interval(scores) for name, scores in judged.items()}
    gain = measures.interval(judged["right prompt"] - judged["another's prompt"])
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.bar(
        list(intervals),
        [i.mean for i in intervals.values()],
        yerr=[i.half for i in intervals.values()],
        capsize=6,
        color=["#4477aa", "#bbbbbb", "#bbbbbb"],
    )
    axes.set(title="CLIP score, with 95 % confidence intervals")
    figure.savefig(subject.out / "4-text.png", dpi=130)
    figures: tuple[str, ...] = ("4-text.png",)
    if _draw_attention(subject):
        figures += ("4-attention.png",)
    sure = "so the text steers the picture" if gain.mean > gain.half else "which may be chance"
    return Claim(
        "Text steers the picture",
        "The caption enters the network as a row of token vectors, to which each place of the "
        "picture attends. If the text steers, pictures fit their own prompt better than someone "
        "else's, and better than pictures drawn without a prompt. The maps, where the network has "
        "cross-attention, show which places look at which word, over all steps of one picture.",
        f"Pictures score {intervals['right prompt'].mean:.1f} with their own prompt and "
        f"{intervals['another' + chr(39) + 's prompt'].mean:.1f} with another's: a difference of "
        f"{gain.mean:.1f} ± {gain.half:.1f}, {sure}.",
        figures,
        {name: i._asdict() for name, i in {**intervals, "difference": gain}.items()},
    )


def _draw_attention(subject: Subject) -> bool:
    """The picture beside a map a word; False where the network or the text encoder has none."""
    encoder = subject.trained.config.text.encoder._target_
    if not encoder.endswith("OpenClipCaptions"):
        return False
    prompt = subject.arguments.prompt or max(subject.captions[:8], key=len)
    pairs = open_clip.SimpleTokenizer()
    side = subject.images.shape[-1]
    with measures.AttentionWatch(subject.trained.denoiser.network, 1, side) as watch:
        picture = subject.draw([prompt])[0]
    if watch.total is None:
        return False
    lengths = [len(pairs.encode(word)) for word in prompt.lower().split()]
    places = measures.word_places(prompt, lengths)
    places = [(word, at) for word, at in places if at.stop < watch.total.shape[1]]
    figure = Figure(figsize=(1.7 * (len(places) + 1), 2), layout="constrained")
    axes = figure.subplots(1, len(places) + 1)
    shown = ((picture.float().cpu() + 1) / 2).clamp(0, 1).permute(1, 2, 0).numpy()
    axes[0].imshow(shown)
    axes[0].set_title(prompt, fontsize=7, wrap=True)
    for place, (word, tokens) in zip(axes[1:], places, strict=True):
        place.imshow(shown.mean(-1), cmap="gray")
        place.imshow(watch.total[0, tokens].mean(0).cpu().numpy(), cmap="inferno", alpha=0.65)
        place.set_title(word, fontsize=9)
    for place in axes:
        place.axis("off")
    figure.savefig(subject.out / "4-attention.png", dpi=130)
    return True


def latents_are_cheap(subject: Subject) -> Claim:
    """The same backbone on pixels and on latents of equal pictures: one training step."""
    config, rows = subject.trained.config, min(8, len(subject.images))
    condition = subject.condition(subject.captions[:rows])
    objective = build(config.diffusion, "diffusion")
    spaces = {"latent": subject.latents()[:rows], "pixel": subject.images[:rows]}
    costs = {}
    for space, data in spaces.items():
        backbone = config.backbone.copy()
        backbone.in_channels = data.shape[1]
        network = build(backbone, "backbone").to(subject.device)
        costs[space] = measures.training_cost(network, objective, data, condition)
    pixel, latent = costs["pixel"], costs["latent"]
    labels = (("flops", "GFLOP a step", 1e9), ("seconds", "seconds a step", 1.0))
    figure = Figure(figsize=(9, 3), layout="constrained")
    for axes, (key, title, unit) in zip(
        figure.subplots(1, 3), (*labels, ("bytes", "MB kept for backward", 1e6)), strict=True
    ):
        values = [c._asdict()[key] / unit for c in (pixel, latent)]
        bars = axes.bar(["pixels", "latents"], values, color=["#bbbbbb", "#4477aa"])
        axes.bar_label(bars, fmt="{:.3g}")
        axes.set(title=title)
    figure.savefig(subject.out / "5-cost.png", dpi=130)
    shapes = {name: "x".join(map(str, data.shape[1:])) for name, data in spaces.items()}
    return Claim(
        "Latent space is far cheaper than pixels",
        "The autoencoder shrinks a picture before the diffusion ever sees it, and the backbone's "
        "work grows with the number of cells it looks at. Both columns are the same backbone, with "
        f"fresh weights, on the same {rows} pictures: as pixels ({shapes['pixel']}) and as latents "
        f"({shapes['latent']}). One training step, forward and backward, on this machine.",
        f"A step in pixel space takes {pixel.flops / latent.flops:.1f} times the arithmetic, "
        f"{pixel.seconds / latent.seconds:.1f} times the time and "
        f"{pixel.bytes / latent.bytes:.1f} times the memory for activations.",
        ("5-cost.png",),
        {name: cost._asdict() for name, cost in costs.items()},
    )
