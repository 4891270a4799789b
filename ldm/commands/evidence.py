"""`ldm evidence`: the five claims of latent diffusion, measured on the user's own run."""

import argparse
import json
from pathlib import Path
from typing import Any

from ldm.commands.options import refuse_below


def add_parser(subparsers: Any) -> None:
    """The verb and its options."""
    parser = subparsers.add_parser("evidence", help="five claims, measured on your run: a page")
    parser.add_argument("target", metavar="RUN", help="a diffusion run, or one of its checkpoints")
    parser.add_argument("--out", metavar="DIR", help="default: RUN/evidence")
    parser.add_argument("--markdown", metavar="FILE", help="the page as Markdown too")
    parser.add_argument("--samples", type=int, default=64, help="pictures a measurement")
    parser.add_argument("--steps", default="1,2,4,8,16,32", help="compared with each other")
    parser.add_argument("--guidance", type=float, help="1 is none (default: the run's)")
    parser.add_argument("--sampler", help="ddim, euler, heun, … (default: the run's)")
    parser.add_argument("--prompt", help="whose words are looked at (default: val captions)")
    parser.add_argument("--clip", metavar="FOLDER", help="the CLIP that judges")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    parser.add_argument("--first-stage", help="another place of the run's first stage")
    parser.set_defaults(func=run, negative="", seed=0)


def run(arguments: argparse.Namespace) -> int:
    """Write evidence.html, its five PNGs and evidence.json, and Markdown where it is asked for."""
    try:
        steps = [int(step) for step in arguments.steps.split(",")]
    except ValueError:
        raise ValueError(f"--steps {arguments.steps}: write numbers, such as 1,2,4,8") from None
    if min(steps) < 1:
        raise ValueError(f"--steps {arguments.steps}: each must be 1 or more")
    refuse_below(arguments, 1, "batch_size")
    if arguments.samples < 8:
        raise ValueError(f"--samples {arguments.samples}: confidence intervals need 8 or more")

    from ldm.commands.drawing import device_of
    from ldm.commands.evidence_claims import claims
    from ldm.commands.evidence_page import markdown, page
    from ldm.commands.evidence_subject import Subject
    from ldm.commands.trained import load_diffusion

    device = device_of(arguments.device)
    trained = load_diffusion(arguments.target, arguments.first_stage)
    out = Path(arguments.out) if arguments.out else trained.folder.path / "evidence"
    out.mkdir(parents=True, exist_ok=True)
    subject = Subject.of(trained, arguments, out, device)
    found = []
    for number, claim in enumerate(claims(subject, steps), 1):
        print(f"{number} {claim.title}: {claim.finding}", flush=True)
        found.append(claim)
    (out / "evidence.html").write_text(page(found, subject.about, out), encoding="utf-8")
    numbers = {"about": subject.about, "claims": {c.title: c.numbers for c in found}}
    (out / "evidence.json").write_text(json.dumps(numbers, indent=1) + "\n")
    if arguments.markdown:
        file = Path(arguments.markdown)
        file.write_text(markdown(found, subject.about, out, file), encoding="utf-8")
        print(file)
    print(out / "evidence.html")
    return 0
