"""Trainings as processes of their own, forked from one that has imported everything.

`python train.py` spends ten seconds on imports. A fork of a process that has them spends none, and
is a process like any other: it comes in by train.py, has ranks beside it, gets signals and is
killed. Ranks are told who they are as torchrun tells them.
"""

import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
IMPORTED = (
    "ldm.commands.train",
    "ldm.training.muon",
    "lightning.pytorch.strategies",
    "tensorboard.summary.writer.event_file_writer",
    "torch._dynamo",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "torch.utils.tensorboard",
)
PATIENCE = 900.0  # seconds for a training of some steps on a very busy machine


@dataclass
class Run:
    """The processes of one training, rank 0 first."""

    starter: "Starter"
    pids: list[int]
    log: Path
    codes: dict[int, int] = field(default_factory=dict)

    def send(self, number: int, ranks: Sequence[int] | None = None) -> None:
        """To these ranks, or to all."""
        for rank, pid in enumerate(self.pids):
            if (ranks is None or rank in ranks) and pid not in self.codes:
                os.kill(pid, number)

    def ended(self) -> bool:
        """Whether all processes have."""
        for pid in self.pids:
            if pid not in self.codes:
                code = self.starter.ask({"ended": pid})
                if code is not None:
                    self.codes[pid] = code
        return len(self.codes) == len(self.pids)

    def wait(self, seconds: float = PATIENCE) -> list[int]:
        """The exit codes, a signal's as its negative number. What lasts longer is killed."""
        end = time.monotonic() + seconds
        while not self.ended():
            if time.monotonic() > end:
                self.send(signal.SIGKILL)
                raise TimeoutError(f"still running after {seconds:.0f} s:\n{self.said()}")
            time.sleep(0.02)
        return [self.codes[pid] for pid in self.pids]

    def said(self) -> str:
        """What all ranks wrote to the terminal."""
        return self.log.read_text(errors="replace")


class Starter:
    """The process that is forked."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.runs: list[Run] = []

    def ask(self, request: dict[str, Any]) -> Any:
        """One line there, one line back."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(
        self,
        place: Path,
        settings: str,
        *,
        ranks: int = 1,
        fault: dict[str, Any] | None = None,
        **environment: str,
    ) -> Run:
        """`train.py settings` in the folder `place`. `fault` befalls one rank: a name
        of `FAULTS`, the rank, and what else that takes."""
        log = place / f"terminal-{len(self.runs)}.txt"
        pids = []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for rank in range(ranks):
            told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GROUP_RANK": "0"}
            told |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "TORCHELASTIC_RUN_ID": "test"}
            told |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
            request = {
                "start": settings.split(),
                "place": str(place),
                "log": str(log),
                "environment": (told if ranks > 1 else {}) | environment,
                "fault": fault if fault is not None and fault["rank"] == rank else None,
            }
            pids.append(self.ask(request))
        self.runs.append(Run(self, pids, log))
        return self.runs[-1]

    def close(self) -> None:
        """Nothing is left running."""
        for run in self.runs:
            if not run.ended():
                run.send(signal.SIGKILL)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()


def serve() -> None:
    """Fork for each request on stdin; a child leaves by the exception that ends it."""
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what imports print is no answer
    for module in IMPORTED:
        importlib.import_module(module)
    for line in sys.stdin:
        request = json.loads(line)
        if "ended" in request:
            pid, status = os.waitpid(request["ended"], os.WNOHANG)
            found: Any = os.waitstatus_to_exitcode(status) if pid else None
        else:
            found = os.fork()
            if found == 0:
                answer.close()
                be_training(request)
        answer.write(json.dumps(found) + "\n")
        answer.flush()


def be_training(request: dict[str, Any]) -> None:
    """In the child: what `python train.py` would do, in a session of its own."""
    os.setsid()
    os.chdir(request["place"])
    os.environ.update(request["environment"])
    log = os.open(request["log"], os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for old, new in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(old, new)
    if fault := request["fault"]:
        FAULTS[fault.pop("fault")](**fault)
    sys.argv = [str(ROOT / "train.py"), *request["start"]]
    try:
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc()
        sys.exit(1)
    sys.exit(0)


def at_drafts(act: Any) -> None:
    """Call `act` whenever a checkpoint's draft or a file of it is made, opened or renamed."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("open", "os.mkdir", "os.rename") and ".draft-" in str(arguments[0]):
            act()

    sys.addaudithook(hook)


def killed_while_writing(rank: int, event: int, delay: float) -> None:
    """SIGKILL, `delay` seconds after the n-th thing that happens to a draft."""
    left = [event]

    def die() -> None:
        time.sleep(delay)
        os.kill(os.getpid(), signal.SIGKILL)

    def count() -> None:
        left[0] -= 1
        if left[0] == 0:
            threading.Thread(target=die, daemon=True).start() if delay else die()

    at_drafts(count)


def disk_full(rank: int, times: int) -> None:
    """No draft can be touched for so many times."""
    left = [times]

    def refuse() -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(28, "No space left on device")

    at_drafts(refuse)


def raising(rank: int, step: int, error: str) -> None:
    """An error of this name in the training step."""
    torch = importlib.import_module("torch")
    found = {"OutOfMemoryError": torch.OutOfMemoryError}.get(error, RuntimeError)
    for module, name in (
        ("autoencoder", "AutoencoderModule"),
        ("diffusion", "LatentDiffusionModule"),
    ):
        kind = vars(importlib.import_module(f"ldm.training.{module}"))[name]

        def training_step(self: Any, *arguments: Any, ordinary: Any = kind.training_step) -> Any:
            if self.global_step == step:
                raise found("injected")
            return ordinary(self, *arguments)

        kind.training_step = training_step


FAULTS = {
    "killed_while_writing": killed_while_writing,
    "disk_full": disk_full,
    "raising": raising,
}


if __name__ == "__main__":
    serve()
