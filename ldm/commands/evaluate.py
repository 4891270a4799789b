"""`ldm evaluate`: numbers for a run, a checkpoint or a folder of pictures, and sweeps of them."""

import argparse
import itertools
import json
from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Any

from ldm.commands.options import add_options

DEFAULT = "fd_clip,kid,clip_score,prdc"
SWEPT = {"guidance": float, "steps": int, "passes": int, "sampler": str}


def add_parser(subparsers: Any) -> None:
    """The verb and its options."""
    parser = subparsers.add_parser("evaluate", help="metrics of a run or of a folder of pictures")
    parser.add_argument("target", help="a diffusion run, one of its checkpoints, or a folder")
    parser.add_argument("--metrics", default=DEFAULT, help=f"of conf/metrics (default: {DEFAULT})")
    parser.add_argument("--prompts", metavar="FILE", help="one a line (default: val captions)")
    parser.add_argument("--samples", type=int, default=256, help="val captions that are drawn")
    parser.add_argument("--per-prompt", type=int, default=1, help="pictures of each prompt")
    parser.add_argument(
        "--sweep", nargs="+", default=[], metavar="KEY=A,B", help=f"of {', '.join(SWEPT)}"
    )
    parser.add_argument("--reference", help="`ldm stats make`'s name or file (default: val data)")
    parser.add_argument("--clip", metavar="FOLDER", help="the CLIP that judges")
    parser.add_argument("--seed", type=int, default=0, help="of the first picture; then +1 each")
    parser.add_argument("--out", metavar="DIR", help="default: the run's evaluation/")
    parser.add_argument("--batch-size", type=int, default=64)
    add_options(parser)
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the table; write results.json and, for a sweep, pareto.png and by-passes.png."""
    if min(arguments.batch_size, arguments.samples, arguments.per_prompt) < 1:
        raise ValueError("--batch-size, --samples and --per-prompt must be 1 or more")
    cells = settings_of(arguments)
    target = Path(arguments.target)
    if not target.is_dir():
        raise FileNotFoundError(f"{target}: no such folder; name a run, a checkpoint or pictures")

    import torch

    from ldm.commands.judging import join_ranks

    ranks = join_ranks()
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    run_folder = target.parent.parent if target.name.startswith("step-") else target
    out = Path(arguments.out) if arguments.out else run_folder / "evaluation"
    if _is_run(target):
        rows = _run_rows(arguments, cells, out, device, ranks)
    else:
        if arguments.sweep:
            raise ValueError("--sweep draws pictures, and a folder of them is drawn: name a run")
        rows = [_folder_row(arguments, target, device, ranks)]
    if ranks.rank == 0:
        out.mkdir(parents=True, exist_ok=True)
        (out / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
        print(table(rows))
        if len(rows) > 1 and pareto(rows, out / "pareto.png"):
            print(f"{out / 'pareto.png'}: Fréchet distance against CLIP score")
        if by_passes(rows, out / "by-passes.png"):
            print(f"{out / 'by-passes.png'}: both against the number of network passes")
        print(f"{out / 'results.json'}")
    ranks.wait()
    return 0


def settings_of(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Each cell of the sweep as {guidance, steps, passes, sampler}; None is the run's own."""
    axes: dict[str, list[Any]] = {key: [getattr(arguments, key)] for key in SWEPT}
    for asked in arguments.sweep:
        key, _, values = asked.partition("=")
        if key not in SWEPT or not values:
            raise ValueError(
                f"--sweep {asked}: write KEY=A,B with a key of {', '.join(SWEPT)}, "
                "such as --sweep guidance=1,2,3 steps=5,10"
            )
        try:
            axes[key] = [SWEPT[key](value) for value in values.split(",")]
        except ValueError:
            raise ValueError(f"--sweep {asked}: {key} takes numbers") from None
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def _is_run(target: Path) -> bool:
    return (target / "config.yaml").is_file() or target.name.startswith("step-")


def _run_rows(
    arguments: argparse.Namespace, cells: list[dict[str, Any]], out: Path, device: Any, ranks: Any
) -> list[dict[str, Any]]:
    from ldm.commands.building import build
    from ldm.commands.drawing import text_to_image
    from ldm.commands.judging import (
        References,
        draw_missing,
        judge,
        metrics_named,
        open_folder,
        seconds_a_picture,
    )

    trained = load(arguments.target, arguments.first_stage)
    data = {split: build(trained.config.data[split], f"data.{split}") for split in ("train", "val")}
    prompts = prompts_of(arguments, list(data["val"].captions()))
    references = References(data, arguments.reference, device)
    metrics = metrics_named(arguments.metrics.split(","), references, arguments.clip)
    rows = []
    for cell in cells:
        asked = argparse.Namespace(**{**vars(arguments), **cell, "device": str(device)})
        generate, settings = text_to_image(trained, asked)
        settings.pop("config")
        shown = {
            "sampler": asked.sampler or settings["sampler"]["_target_"].rpartition(".")[2],
            "steps": generate.sampler.steps,
            "guidance": settings["guidance"],
        }
        step = settings["checkpoint"].rpartition("/")[2]
        folder = out / step / "-".join(f"{key}={value}" for key, value in shown.items())
        draw_missing(
            generate,
            prompts,
            folder,
            settings,
            seed=arguments.seed,
            batch_size=arguments.batch_size,
            ranks=ranks,
        )
        pictures = open_folder(folder)
        values = judge(
            pictures, metrics, batch_size=arguments.batch_size, device=device, ranks=ranks
        )
        row = {**shown, "passes": generate.sampler.passes, "pictures": len(pictures.files)}
        row["seconds"] = seconds_a_picture(folder)
        row |= {"checkpoint": settings["checkpoint"], "seed": arguments.seed}
        rows.append({**row, "values": values, "names": {k: m.name for k, m in metrics.items()}})
    return rows


def _folder_row(
    arguments: argparse.Namespace, target: Path, device: Any, ranks: Any
) -> dict[str, Any]:
    from ldm.commands.judging import References, judge, metrics_named, open_folder

    pictures = open_folder(target)
    metrics = metrics_named(
        arguments.metrics.split(","), References({}, arguments.reference, device), arguments.clip
    )
    worded = [name for name in ("clip_score", "recall@1", "recall@5") if name in metrics]
    if worded and not any(pictures.captions):
        raise ValueError(
            f"{target} holds no captions, and {worded[0]} compares with them: add metadata.jsonl "
            "(file_name, text), a .txt beside each picture, or leave the metric out"
        )
    values = judge(pictures, metrics, batch_size=arguments.batch_size, device=device, ranks=ranks)
    names = {key: metric.name for key, metric in metrics.items()}
    return {"pictures": len(pictures.files), "values": values, "names": names}


def load(target: str, first_stage: str | None) -> Any:
    """The trained model of a run's newest checkpoint, or of the checkpoint folder that is named."""
    from ldm.commands.parts import load_diffusion
    from ldm.runs.checkpoints import Checkpoint

    path = Path(target)
    if not path.name.startswith("step-"):
        return load_diffusion(target, first_stage)
    trained = load_diffusion(str(path.parent.parent), first_stage)
    checkpoint = Checkpoint(path, int(path.name.removeprefix("step-")))
    damage = checkpoint.damage()
    if damage is not None:
        raise ValueError(f"{path}: {damage}; name another checkpoint")
    state = checkpoint.load()["state_dict"]
    network: Any = trained.denoiser.network  # type: ignore[attr-defined]
    network.load_state_dict(
        {k.removeprefix("average."): v for k, v in state.items() if k.startswith("average.")}
    )
    return replace(trained, checkpoint=checkpoint)


def prompts_of(arguments: argparse.Namespace, captions: list[str]) -> list[str]:
    """The file's lines, or captions evenly spaced over the validation set; each as often as
    --per-prompt says."""
    from ldm.commands.parts import spread

    if arguments.prompts is not None:
        lines = Path(arguments.prompts).read_text(encoding="utf-8").splitlines()
        captions = [line.strip() for line in lines if line.strip()]
        if not captions:
            raise ValueError(f"--prompts {arguments.prompts}: no prompt in it; one a line")
    else:
        captions = spread(captions, arguments.samples)
    return [caption for caption in captions for _ in range(arguments.per_prompt)]


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as aligned text; what could not be measured is a dash, with the reason below."""
    told: list[str] = ["sampler", "steps", "guidance", "passes", "pictures", "seconds"]
    heads = [key for key in told if key in rows[0]]
    heads += list(rows[0]["values"])
    lines, reasons = [heads], []
    for row in rows:
        line = []
        for head in heads:
            value = row["values"].get(head, row.get(head))
            if isinstance(value, str) and head in row["values"]:
                reasons.append(f"{head}: {value}")
                value = None
            line.append("-" if value is None else _short(value))
        lines.append(line)
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    text = ["  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in lines]
    return "\n".join([*text, *dict.fromkeys(reasons)])


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def by_passes(rows: list[dict[str, Any]], path: Path) -> bool:
    """Draws Fréchet distance and CLIP score against network passes, a line a sampler; False where
    no sampler has two numbers of passes."""
    from matplotlib.figure import Figure

    distance = next((k for k in rows[0]["values"] if k.startswith(("fd_", "fid"))), None)
    shown = [key for key in (distance, "clip_score") if key in rows[0]["values"]]
    names = list(dict.fromkeys(row.get("sampler") for row in rows))
    every = sorted({row.get("passes", 0) for row in rows})
    if not shown or len(every) < 2:
        return False
    figure = Figure(figsize=(5.5 * len(shown), 4.4), layout="constrained")
    for number, key in enumerate(shown, 1):
        axes = figure.add_subplot(1, len(shown), number)
        for place, name in enumerate(names):
            mine = [row for row in rows if row["sampler"] == name]
            points = sorted((row["passes"], row["values"][key]) for row in mine)
            x = [passes for passes, _ in points]
            y = [value if isinstance(value, float) else nan for _, value in points]
            axes.plot(x, y, "os^Dv<>"[place % 7], linestyle="-", label=name, markersize=4)
        ticks = [p for p in every if not any(p < q < 1.2 * p for q in every)]  # written apart
        better = "more" if key == "clip_score" else "less"
        title = f"{rows[0]['names'][key]}\n{better} is better"
        axes.set(xscale="log", xlabel="network passes a picture", title=title)
        axes.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
        axes.minorticks_off()
        axes.title.set_fontsize(9)
        axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=130)
    return True


def pareto(rows: list[dict[str, Any]], path: Path) -> bool:
    """Draws Fréchet distance against CLIP score, the best trade-offs joined; False where the rows
    have no such two numbers."""
    from matplotlib.figure import Figure

    distance = next((k for k in rows[0]["values"] if k.startswith(("fd_", "fid"))), None)
    points = [
        (
            row["values"]["clip_score"],
            row["values"][distance],
            f"{row['guidance']:g} / {row['steps']}",
        )
        for row in rows
        if distance is not None
        and isinstance(row["values"].get("clip_score"), float)
        and isinstance(row["values"][distance], float)
    ]
    if not points:
        return False
    best = [p for p in points if not any(q[0] >= p[0] and q[1] <= p[1] and q != p for q in points)]
    best.sort()
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axes = figure.subplots()
    axes.plot([p[0] for p in best], [p[1] for p in best], color="0.7", zorder=1)
    axes.scatter([p[0] for p in points], [p[1] for p in points], zorder=2)
    for x, y, label in points:
        axes.annotate(label, (x, y), xytext=(5, 5), textcoords="offset points", fontsize=8)
    axes.set_xlabel(f"CLIP score, more is better\n{rows[0]['names']['clip_score']}", fontsize=8)
    axes.set_ylabel(f"Fréchet distance, less is better\n{rows[0]['names'][distance]}", fontsize=8)
    axes.set_title("guidance / steps; the line joins the best trade-offs", fontsize=10)
    figure.savefig(path, dpi=150)
    return True
