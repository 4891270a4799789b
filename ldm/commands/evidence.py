"""`ldm evidence`: the five claims of latent diffusion, measured on the user's own run."""

import argparse
import html
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """The verb and its options."""
    parser = subparsers.add_parser("evidence", help="five claims, measured on your run: a page")
    parser.add_argument("target", metavar="RUN", help="a diffusion run, or one of its checkpoints")
    parser.add_argument("--out", metavar="DIR", help="default: RUN/evidence")
    parser.add_argument("--samples", type=int, default=64, help="pictures a measurement")
    parser.add_argument("--steps", default="1,2,4,8,16,32", help="compared with each other")
    parser.add_argument("--guidance", type=float, help="1 is none (default: the run's)")
    parser.add_argument("--sampler", help="ddim, euler, heun, … (default: the run's)")
    parser.add_argument("--prompt", help="whose words are looked at (default: a val caption)")
    parser.add_argument("--clip", metavar="FOLDER", help="the CLIP that judges")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    parser.add_argument("--first-stage", help="another place of the run's first stage")
    parser.set_defaults(func=run, negative="", seed=0)


@dataclass(frozen=True)
class Claim:
    """One section of the page: what is claimed, what was found, and its figures' files."""

    title: str
    lesson: str
    finding: str
    figures: tuple[str, ...]
    numbers: dict[str, Any]


def run(arguments: argparse.Namespace) -> int:
    """Write evidence.html, its PNGs and evidence.json."""
    try:
        steps = [int(step) for step in arguments.steps.split(",")]
    except ValueError:
        raise ValueError(f"--steps {arguments.steps}: write numbers, such as 1,2,4,8") from None
    if min(steps) < 1 or arguments.batch_size < 1:
        raise ValueError("--steps and --batch-size must be 1 or more")
    if arguments.samples < 8:
        raise ValueError(f"--samples {arguments.samples}: confidence intervals need 8 or more")

    import torch

    from ldm.commands.evaluate import load
    from ldm.commands.evidence_claims import claims
    from ldm.commands.evidence_subject import Subject

    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    target = Path(arguments.target)
    run_folder = target.parent.parent if target.name.startswith("step-") else target
    trained = load(arguments.target, arguments.first_stage)
    out = Path(arguments.out) if arguments.out else run_folder / "evidence"
    out.mkdir(parents=True, exist_ok=True)
    subject = Subject.of(trained, arguments, out, device)
    found = []
    for number, claim in enumerate(claims(subject, steps), 1):
        print(f"{number} {claim.title}: {claim.finding}")
        found.append(claim)
    (out / "evidence.html").write_text(page(found, subject.about), encoding="utf-8")
    numbers = {"about": subject.about, "claims": {c.title: c.numbers for c in found}}
    (out / "evidence.json").write_text(json.dumps(numbers, indent=1) + "\n")
    print(out / "evidence.html")
    return 0


_STYLE = """
body { font: 17px/1.55 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto;
       padding: 0 1rem; color: #222; background: #fff }
h1 { font-size: 1.7rem } h2 { font-size: 1.25rem; margin-top: 2.5rem }
img { max-width: 100%; display: block; margin: 1rem 0 }
.finding { border-left: 4px solid #4477aa; padding-left: .8rem; font-weight: 600 }
.about { color: #666; font-size: .85rem; overflow-wrap: anywhere }
"""


def page(found: list[Claim], about: dict[str, Any]) -> str:
    """The claims as one HTML page beside its PNGs."""
    sections = []
    for number, claim in enumerate(found, 1):
        images = "\n".join(
            f'<img src="{html.escape(name)}" alt="{html.escape(claim.title)}">'
            for name in claim.figures
        )
        sections.append(
            f"<h2>{number}. {html.escape(claim.title)}</h2>\n<p>{html.escape(claim.lesson)}</p>\n"
            f'<p class="finding">{html.escape(claim.finding)}</p>\n{images}'
        )
    notes = " · ".join(f"{key}: {value}" for key, value in about.items())
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>Evidence: {html.escape(str(about['run']))}</title>\n<style>{_STYLE}</style>\n"
        "</head>\n<body>\n<h1>Five claims about latent diffusion, measured on "
        f"{html.escape(str(about['run']))}</h1>\n"
        "<p>Every number and picture below was computed from this run, its data and this machine. "
        "The same command on another run gives that run's page.</p>\n"
        + "\n".join(sections)
        + f'\n<p class="about">{html.escape(notes)}</p>\n</body>\n</html>\n'
    )
