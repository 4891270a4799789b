"""A run's starts and ends, one JSON line each: what restarts cost, and whether they help."""

import json
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from ldm.runs.signals import SAVED

SAME_STEP = 3  # starts in a row that got nowhere, after which another one will not help


@dataclass(frozen=True)
class Attempts:
    """`attempts.jsonl` of a run folder."""

    folder: Path

    @property
    def file(self) -> Path:
        """Lines of `{"event": "start" | "end", "step": ..., "time": ..., ...}`."""
        return self.folder / "attempts.jsonl"

    def start(self, step: int) -> None:
        """A process begins to train at this step."""
        self._add("start", step=step)

    def end(self, step: int, code: int, why: str) -> None:
        """It ends, in order or with an error that it could still tell."""
        self._add("end", step=step, code=code, why=why)

    def fruitless(self, step: int) -> int:
        """How many of the latest attempts ended badly with the training standing at this step: they
        died before they had saved a later one, or were told to stop before a step was done."""
        count, stood, end = 0, step, None
        for line in reversed(self._lines()):
            if line["event"] == "end":
                end = line
                continue
            saved = end is not None and end["code"] == SAVED and end["step"] != line["step"]
            if stood != step or saved or (end is not None and end["code"] == 0):
                break
            count, stood, end = count + 1, int(line["step"]), None
        return count

    def lost(self) -> tuple[int, float]:
        """Restarts, and the seconds between an attempt's last sign and the next start."""
        lines = self._lines()
        waits = [
            float(after["time"]) - float(before["time"])
            for before, after in pairwise(lines)
            if after["event"] == "start" and before["event"] == "end"
        ]
        starts = sum(line["event"] == "start" for line in lines)
        return max(0, starts - 1), sum(waits, 0.0)

    def last_failure(self) -> str:
        """What the latest attempt that could tell it died of."""
        ends = [line for line in self._lines() if line["event"] == "end" and line["code"]]
        return str(ends[-1]["why"]) if ends else "the process was killed, and could not tell"

    def _add(self, event: str, **values: int | str) -> None:
        with self.file.open("a") as file:
            file.write(json.dumps({"event": event, "time": time.time(), **values}) + "\n")

    def _lines(self) -> list[dict[str, float | str]]:
        if not self.file.exists():
            return []
        found = []
        for line in self.file.read_text().splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:  # a killed process wrote half of it
                continue
        return found
