"""`ldm evaluate`: numbers for a run, a checkpoint or a folder of pictures, and sweeps of them."""

import argparse
import hashlib
import itertools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ldm.commands.errors import FAILED
from ldm.commands.options import add_options, refuse_below
from ldm.files import write_text

DEFAULT = "fd_clip,kid,clip_score,prdc"
SWEPT = {"guidance": float, "steps": int, "passes": int, "sampler": str}


def add_parser(subparsers: Any) -> None:
    """The verb and its options."""
    parser = subparsers.add_parser("evaluate", help="metrics of a run or of a folder of pictures")
    parser.add_argument("target", help="a run, one of its checkpoints, or a folder of pictures")
    parser.add_argument("--metrics", default=DEFAULT, help=f"of conf/metrics (default: {DEFAULT})")
    parser.add_argument("--prompts", metavar="FILE", help="one a line (default: val captions)")
    parser.add_argument("--samples", type=int, default=256, help="val captions that are drawn")
    parser.add_argument("--per-prompt", type=int, default=1, help="pictures of each prompt")
    parser.add_argument(
        "--sweep", nargs="+", default=[], metavar="KEY=A,B", help=f"of {', '.join(SWEPT)}"
    )
    parser.add_argument(
        "--reference", nargs="+", default=[], metavar="[SPLIT=]NAME",
        help="`ldm stats make`'s name or file for what compares with val (or: train=NAME)",
    )  # fmt: skip
    parser.add_argument("--clip", metavar="FOLDER", help="the CLIP that judges")
    parser.add_argument("--seed", type=int, default=0, help="of the first picture; then +1 each")
    parser.add_argument("--out", metavar="DIR", help="default: the run's evaluation/")
    parser.add_argument("--batch-size", type=int, default=64)
    add_options(parser)
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the table; write results.json and, for a sweep, pareto.png and quality.png."""
    refuse_below(arguments, 1, "batch_size", "samples", "per_prompt")
    cells = settings_of(arguments)
    target = Path(arguments.target)
    if not target.is_dir():
        raise FileNotFoundError(f"{target}: no such folder; name a run, a checkpoint or pictures")

    from ldm.commands.drawing import device_of
    from ldm.commands.judging import join_ranks
    from ldm.runs.checkpoints import run_named

    ranks = join_ranks()
    device = device_of(arguments.device)
    run_folder = run_named(target)
    is_run = (run_folder / "config.yaml").is_file()
    out = Path(arguments.out) if arguments.out else run_folder / "evaluation"
    drawn = is_run and stage_of(run_folder) == "diffusion"
    if arguments.sweep and not drawn:
        raise ValueError("--sweep draws pictures from prompts: name a run of stage diffusion")
    if drawn:
        rows = _run_rows(arguments, cells, out, device, ranks)
    elif is_run:
        from ldm.commands.evaluate_reconstructions import reconstruction_row

        rows = [reconstruction_row(arguments, target, device, ranks)]
    else:
        rows = [_folder_row(arguments, target, device, ranks)]
    if ranks.rank == 0:
        _leave(rows, out)
    ranks.wait()
    return 0 if _measured(rows) else FAILED


def _measured(rows: list[dict[str, Any]]) -> bool:
    return any(isinstance(value, float) for row in rows for value in row["values"].values())


def _leave(rows: list[dict[str, Any]], out: Path) -> None:
    """The table on the terminal, JSON and plots in the folder."""
    from ldm.commands.evaluate_plots import pareto, quality

    out.mkdir(parents=True, exist_ok=True)
    print(table(rows))
    if not _measured(rows):
        print(f"nothing was measured; {out / 'results.json'} is as it was", file=sys.stderr)
        return
    with (out / "history.jsonl").open("a") as history:
        history.writelines(json.dumps({"at": time.time(), **row}) + "\n" for row in rows)
    write_text(out / "results.json", json.dumps(rows, indent=1) + "\n")
    if len(rows) > 1 and pareto(rows, out / "pareto.png"):
        print(f"{out / 'pareto.png'}: Fréchet distance against CLIP score")
    if len({row.get("steps") for row in rows}) > 1 and quality(rows, out / "quality.png"):
        print(f"{out / 'quality.png'}: against steps and seconds")
    print(f"{out / 'results.json'}")


def stage_of(run_folder: Path) -> str:
    """What was trained in a run's folder."""
    from ldm.runs.folder import RunFolder

    return str(RunFolder(run_folder).config().get("stage_name"))


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


def _run_rows(
    arguments: argparse.Namespace, cells: list[dict[str, Any]], out: Path, device: Any, ranks: Any
) -> list[dict[str, Any]]:
    from ldm.commands.judging import ready
    from ldm.commands.metric_choices import (
        MetricChoices,
        References,
        data_of,
        named_references,
    )
    from ldm.commands.trained import load_diffusion
    from ldm.metrics import MetricGroup

    trained = load_diffusion(arguments.target, arguments.first_stage)
    data = data_of(trained.config)
    prompts = prompts_of(arguments, data["val"])
    named = named_references(arguments.reference)
    references = References(data, named, device, lambda: trained.codec)
    clip = arguments.clip or trained.config.evaluation.clip
    choices = MetricChoices(arguments.metrics.split(","), references, clip=clip)
    metrics = ready(MetricGroup(choices.makers()), device)
    common = {"seed": arguments.seed, "names": choices.names(metrics.metrics)}
    return [
        {**_cell_row(arguments, cell, trained, prompts, metrics, out, device, ranks), **common}
        for cell in cells
    ]


def _cell_row(
    arguments: argparse.Namespace,
    cell: dict[str, Any],
    trained: Any,
    prompts: list[str],
    metrics: Any,
    out: Path,
    device: Any,
    ranks: Any,
) -> dict[str, Any]:
    """One cell of the sweep: draw what is missing, and judge all of it."""
    from ldm.commands.drawing import text_to_image
    from ldm.commands.judging import draw_missing, judge, open_folder, seconds_a_picture

    asked = argparse.Namespace(**{**vars(arguments), **cell, "device": str(device)})
    generate, settings = text_to_image(trained, asked)
    settings.pop("config")
    shown = {
        "sampler": asked.sampler or settings["sampler"]["_target_"].rpartition(".")[2],
        "steps": generate.sampler.steps,
        "guidance": settings["guidance"],
    }
    # Other settings, another first stage, other prompts and other seeds have folders of their own.
    latents = trained.codec.statistics.fingerprint
    every = json.dumps([settings, prompts, arguments.seed, latents], sort_keys=True)
    digest = hashlib.sha256(every.encode()).hexdigest()[:8]
    step = settings["checkpoint"].rpartition("/")[2]
    folder = out / step / "-".join([*(f"{k}={v}" for k, v in shown.items()), digest])
    draw_missing(
        generate, prompts, folder, settings,
        seed=arguments.seed, batch_size=arguments.batch_size, ranks=ranks,
    )  # fmt: skip
    pictures = open_folder(folder)
    values = judge(pictures, metrics, batch_size=arguments.batch_size, device=device, ranks=ranks)
    row = {**shown, "passes": generate.sampler.passes, "pictures": len(pictures.files)}
    row["seconds"] = seconds_a_picture(folder)
    return {**row, "checkpoint": settings["checkpoint"], "values": values}


def _folder_row(
    arguments: argparse.Namespace, target: Path, device: Any, ranks: Any
) -> dict[str, Any]:
    from ldm.commands.judging import judge, open_folder, ready
    from ldm.commands.metric_choices import MetricChoices, References, named_references
    from ldm.metrics import MetricGroup

    pictures = open_folder(target)
    pictures.refuse_mixed_sizes()
    references = References({}, named_references(arguments.reference), device)
    choices = MetricChoices(arguments.metrics.split(","), references, clip=arguments.clip)
    worded = [name for name in ("clip_score", "recall@1", "recall@5") if name in choices.parts]
    if worded and not any(pictures.captions):
        raise ValueError(
            f"{target} holds no captions, and {worded[0]} compares with them: add metadata.jsonl "
            "(file_name, text), a .txt beside each picture, or leave the metric out"
        )
    metrics = ready(MetricGroup(choices.makers()), device)
    values = judge(pictures, metrics, batch_size=arguments.batch_size, device=device, ranks=ranks)
    names = choices.names(metrics.metrics)
    return {"pictures": len(pictures.files), "values": values, "names": names}


def prompts_of(arguments: argparse.Namespace, data: Callable[[], Any]) -> list[str]:
    """The file's lines, or captions evenly spaced over the data; each as often as --per-prompt
    says."""
    from ldm.commands.parts import spread
    from ldm.data.text import lines_of

    if arguments.prompts is not None:
        captions = lines_of(Path(arguments.prompts))
        if not captions:
            raise ValueError(f"--prompts {arguments.prompts}: no prompt in it; one a line")
    else:
        there = list(data().captions())
        captions = spread(there, arguments.samples)
        if len(there) < arguments.samples:
            print(
                f"note: --samples {arguments.samples}, but data.val has {len(there)} captions, "
                "which are all drawn; more come of --per-prompt or --prompts FILE",
                file=sys.stderr,
            )
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
