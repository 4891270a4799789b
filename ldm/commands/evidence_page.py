"""The claims of `ldm evidence` as a page: HTML that stands alone, and Markdown for a repository."""

import base64
import html
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_STYLE = """
:root { color-scheme: light }
body { font: 17px/1.6 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem;
       color: #222; background: #fff; overflow-wrap: break-word }
h1 { font-size: 1.7rem; line-height: 1.25 }
h2 { font-size: 1.3rem; margin: 3rem 0 .5rem }
ol.short { padding-left: 1.4rem } ol.short li { margin: .4rem 0 }
a { color: #2a5d8f }
figure { margin: 1rem 0 }
figure div { overflow-x: auto }
img { width: 100%; min-width: 38rem; display: block }
figcaption { color: #555; font-size: .9rem; margin-top: .4rem }
.finding { border-left: 4px solid #4477aa; padding: .3rem 0 .3rem .9rem; background: #f3f6fa }
details { font-size: .85rem; color: #555 } pre { overflow-x: auto; max-height: 20rem }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; font-size: .85rem;
     color: #555; margin-top: 3rem; border-top: 1px solid #ddd; padding-top: 1rem }
dd { margin: 0; overflow-wrap: anywhere }
@media (max-width: 40rem) { dl { display: block } dd { margin: 0 0 .5rem } }
"""
_INTRODUCTION = (
    "A latent diffusion model draws pictures in two parts: an autoencoder that shrinks pictures to "
    "small grids of numbers, called latents, and a network that turns noise into such a grid, step "
    "by step, as a text asks. Five things are said of such models everywhere. Each is measured "
    "here, on this run, its data and this machine; nothing below is taken from anywhere else."
)


@dataclass(frozen=True)
class Claim:
    """One section of the page: what is claimed, how to read its figure, and what was found."""

    title: str
    lesson: str
    reading: str
    finding: str
    figure: str
    numbers: dict[str, Any]


def page(found: Sequence[Claim], about: Mapping[str, Any], folder: Path) -> str:
    """One HTML file, the PNGs of `folder` inside it."""
    run = html.escape(str(about["run"]))
    short = "\n".join(
        f'<li><a href="#claim-{n}">{html.escape(claim.title)}</a>: '
        f"{html.escape(claim.finding)}</li>"
        for n, claim in enumerate(found, 1)
    )
    notes = "\n".join(
        f"<dt>{html.escape(key)}</dt><dd>{html.escape(str(value))}</dd>"
        for key, value in about.items()
    )
    sections = "\n".join(_section(n, claim, folder) for n, claim in enumerate(found, 1))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Evidence: {run}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>Five claims about latent diffusion, measured on {run}</h1>\n"
        f'<p>{_INTRODUCTION}</p>\n<ol class="short">\n{short}\n</ol>\n{sections}\n'
        f"<dl>\n{notes}\n</dl>\n</body>\n</html>\n"
    )


def _section(number: int, claim: Claim, folder: Path) -> str:
    image = base64.b64encode((folder / claim.figure).read_bytes()).decode()
    numbers = html.escape(json.dumps(claim.numbers, indent=1))
    return (
        f'<h2 id="claim-{number}">{number}. {html.escape(claim.title)}</h2>\n'
        f"<p>{html.escape(claim.lesson)}</p>\n"
        f'<figure><div><img src="data:image/png;base64,{image}" alt="{html.escape(claim.reading)}">'
        f"</div>\n<figcaption>{html.escape(claim.reading)}</figcaption></figure>\n"
        f'<p class="finding">{html.escape(claim.finding)}</p>\n'
        f"<details><summary>The numbers</summary><pre>{numbers}</pre></details>"
    )


def markdown(found: Sequence[Claim], about: Mapping[str, Any], folder: Path, file: Path) -> str:
    """The same for a file of a repository, beside which the PNGs of `folder` lie."""
    where = Path(os.path.relpath(folder, file.parent))
    parts = [f"# Five claims about latent diffusion, measured on {about['run']}", _INTRODUCTION]
    for number, claim in enumerate(found, 1):
        parts += [
            f"## {number}. {claim.title}",
            claim.lesson,
            f"![{claim.title}]({(where / claim.figure).as_posix()})",
            claim.reading,
            f"**{claim.finding}**",
        ]
    rows = [f"| {key} | {value} |" for key, value in about.items()]
    parts += ["## How it was made", "\n".join(["| | |", "|---|---|", *rows])]
    return "\n\n".join(parts) + "\n"
