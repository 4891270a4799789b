"""What the gallery draws: the checkpoints of runs, and kept pictures."""

import argparse
import hashlib
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image as Pictures

from ldm.commands.choices import choice
from ldm.commands.drawing import text_to_image
from ldm.commands.errors import choices_of
from ldm.commands.gallery_wish import Glimpse, Wish
from ldm.commands.trained import load_diffusion
from ldm.generate import save_png, to_picture
from ldm.runs.checkpoints import checkpoints
from ldm.runs.folder import RunFolder

FAVOURITES = "favourites"  # the folder in a run; a PNG's own text says how it was drawn
LOADED = 2  # checkpoints in memory at once: those that are compared
REMEMBERED = 32  # newest pictures, so that keeping one draws nothing


class Studio:
    """The checkpoints of some runs, loaded when they are asked for, one drawing at a time.

    Runs may still be training: checkpoints are looked up anew each time.
    """

    def __init__(self, runs: Sequence[str], device: str | None, first_stage: str | None) -> None:
        self.runs = {Path(run).resolve().name: Path(run) for run in runs}
        if len(self.runs) < len(runs):
            raise ValueError("two of the runs have the same name; name each once")
        self.device, self.first_stage = device, first_stage
        self._loaded: dict[str, Any] = {}
        self._drawn: dict[Wish, tuple[Pictures.Image, dict[str, Any]]] = {}
        self._one = threading.Lock()
        for path in self.runs.values():
            config = RunFolder(path).config()
            if config.get("stage_name") != "diffusion":
                raise ValueError(f"{path}: draws nothing; name a run of stage=diffusion")
        self.checkpoints()

    def checkpoints(self) -> list[str]:
        """`RUN/step-N`, each run's newest first; FileNotFoundError where there is none."""
        found = [
            f"{name}/{checkpoint.path.name}"
            for name, path in self.runs.items()
            for checkpoint in reversed(checkpoints(RunFolder(path).checkpoints))
        ]
        if not found:
            raise FileNotFoundError(
                f"{', '.join(map(str, self.runs.values()))}: no checkpoint yet; train the run"
            )
        return found

    def offer(self) -> dict[str, Any]:
        """What the page can choose from, and what it begins with: the first run's own settings."""
        config = RunFolder(next(iter(self.runs.values()))).config()
        prompts = config["evaluation"].get("grid_prompts") or []
        samplers = choices_of("sampler")
        target = config["sampler"]["_target_"]
        return {
            "checkpoints": self.checkpoints(),
            "samplers": samplers,
            "sampler": next((name for name in samplers if _target(name) == target), samplers[0]),
            "steps": config["sampler"]["steps"],
            "guidance": config["evaluation"]["guidance"],
            "prompts": prompts,
        }

    def draw(self, wish: Wish, show: Callable[[Glimpse], None]) -> Pictures.Image:
        """The picture that `ldm sample` makes of these settings; `show` sees it form, and ends
        the drawing by raising."""
        with self._one:
            trained = self._trained(wish.checkpoint)
            asked = argparse.Namespace(**asdict(wish), device=self.device)
            generate, settings = text_to_image(trained, asked)
            passes = 0

            def watch(x_t: Any, t: Any, estimate: Any) -> None:
                nonlocal passes
                passes += 1
                picture = to_picture(generate.codec.decode(estimate.x0)[0])
                show(Glimpse(passes, 1 - float(t[0]), picture))

            made = generate([wish.prompt], [wish.seed], wish.negative, watch=watch)
            picture = to_picture(made[0])
            self._drawn[wish] = picture, settings
            while len(self._drawn) > REMEMBERED:
                self._drawn.pop(next(iter(self._drawn)))
            return picture

    def keep(self, wish: Wish) -> str:
        """Among the run's favourites, as a PNG that says how it was drawn; its name."""
        if wish not in self._drawn:
            self.draw(wish, lambda glimpse: None)
        picture, settings = self._drawn[wish]
        text = json.dumps(asdict(wish), sort_keys=True)
        name = f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.png"
        folder = self.runs[wish.checkpoint.partition("/")[0]] / FAVOURITES
        try:
            folder.mkdir(exist_ok=True)
            texts = {**settings, "prompt": wish.prompt, "seed": wish.seed, "wish": text}
            save_png(picture, folder / name, texts)
        except OSError as error:
            raise ValueError(f"{folder}: cannot be written ({error.strerror})") from None
        return name

    def favourites(self) -> list[dict[str, Any]]:
        """Name and settings of each, newest first; what is no picture of ours is left out."""
        found = []
        for path in self.runs.values():
            for file in (path / FAVOURITES).glob("*.png"):
                if wish := _wish_in(file):
                    found.append((file.stat().st_mtime, {"name": file.name, "wish": wish}))
        return [one for _, one in sorted(found, key=lambda pair: pair[0], reverse=True)]

    def favourite(self, name: str) -> Path | None:
        """Its file."""
        for path in self.runs.values():
            for file in (path / FAVOURITES).glob("*.png"):  # a name from outside is only compared
                if file.name == name:
                    return file
        return None

    def _trained(self, name: str) -> Any:
        if name not in self._loaded:
            run, _, step = name.partition("/")
            if name not in self.checkpoints():
                raise ValueError(f"checkpoint={name!r}: is not there (any more); choose another")
            path = RunFolder(self.runs[run]).checkpoints / step
            self._loaded[name] = load_diffusion(str(path), self.first_stage)
            while len(self._loaded) > LOADED:
                self._loaded.pop(next(iter(self._loaded)))
        return self._loaded[name]


def _target(sampler: str) -> str:
    return str(choice("sampler", sampler)["_target_"])


def _wish_in(file: Path) -> Mapping[str, Any] | None:
    try:
        with Pictures.open(file) as picture:
            found = json.loads(str(picture.info["wish"]))
    except (OSError, KeyError, ValueError):
        return None
    return found if isinstance(found, dict) else None
