"""Kill a training again and again, and see that it ends where an undisturbed one does.

    python tests/benchmarks/soak.py --kills 200 --minutes 60 --place /tmp/soak

Trains the emoji's second stage with a tiny network twice from the same seed: once left alone, once
killed at random (four of five times SIGKILL, at any moment from the first line of train.py on;
else SIGTERM or SIGUSR1), each time started again with the same command, with 0 or 2 workers.
Prints what happened, and exits with 1 unless weights, average, optimizer and every logged number
are equal bit for bit. The starts are forks of a process that has everything imported.
"""

import argparse
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "training")]

from started import Run, Starter  # noqa: E402
from tiny import last, numbers, same  # noqa: E402

COMMON = "image_size=32 trainer=cpu precision=32-true log_every=2 module.lr_schedule.warmup=2"
FIRST = f"experiment=emoji/autoencoder autoencoder=tiny loss=l1 critic=none {COMMON} name=first "
FIRST += "global_batch=4 trainer.max_steps=20 evaluation.every=20"
SECOND = f"experiment=emoji/diffusion backbone=dit_tiny first_stage=runs/first {COMMON} "
SECOND += "global_batch=8 evaluation.prompts=4 sampler.steps=1 checkpoint.every=10"


def settings_of(name: str, steps: int, workers: int) -> str:
    """One training of the second stage."""
    more = f"name={name} trainer.max_steps={steps} evaluation.every={steps // 4} workers={workers}"
    return f"{SECOND} {more}"


def done_steps(place: Path, name: str) -> int:
    """How many lines of steps the record has; what a killed process did twice counts once."""
    file = place / "runs" / name / "metrics.jsonl"
    return sum(b"train/loss_mean" in line for line in file.open("rb")) if file.exists() else 0


def strike(run: Run, place: Path, chance: random.Random, before: int) -> str:
    """End the training at a random moment; what was done, or "ended" when it was quicker."""
    if chance.random() < 0.15:  # while it starts
        time.sleep(chance.uniform(0, 1.5))
    else:
        goal = before + chance.randint(1, 12)
        while done_steps(place, "killed") < goal and not run.ended():
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.1))
    if run.ended():
        return "ended"
    number = chance.choices([signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1], [8, 1, 1])[0]
    run.send(number)
    return number.name


def main() -> int:
    """Both trainings; the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--place", type=Path, required=True)
    arguments = parser.parse_args()
    place, chance = arguments.place, random.Random(arguments.seed)
    place.mkdir(parents=True)
    starter = Starter()
    for settings in (FIRST, settings_of("alone", arguments.steps, 0)):
        run = starter.start(place, settings)
        if run.wait(7200) != [0]:
            sys.exit(run.said())
    print(f"left alone: {arguments.steps} steps", flush=True)
    began, struck, codes = time.monotonic(), Counter[str](), Counter[int]()
    while struck.total() < arguments.kills:
        if time.monotonic() - began > 60 * arguments.minutes:
            break
        run = starter.start(place, settings_of("killed", arguments.steps, chance.choice([0, 2])))
        what = strike(run, place, chance, done_steps(place, "killed"))
        (code,) = run.wait(600)
        codes[code] += 1
        if what == "ended":
            break
        struck[what] += 1
        if code not in (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGUSR1, 75, 85):
            sys.exit(f"ended with {code}:\n{run.said()}")
        total = struck.total()
        if total % 10 == 0:
            minutes = (time.monotonic() - began) / 60
            print(f"{minutes:6.1f} min  {total} kills, step {done_steps(place, 'killed')}")
            sys.stdout.flush()
    minutes = (time.monotonic() - began) / 60
    if run.codes[run.pids[0]] != 0:
        run = starter.start(place, settings_of("killed", arguments.steps, 0))
        if run.wait(7200) != [0]:
            sys.exit(run.said())
    starter.close()
    same(last(place / "runs", "killed"), last(place / "runs", "alone"))
    if numbers(place / "runs", "killed") != numbers(place / "runs", "alone"):
        sys.exit("the logged numbers differ")
    print(f"{struck.total()} kills in {minutes:.1f} minutes: {dict(struck)}; codes {dict(codes)}")
    print("weights, average, optimizer and logged numbers are equal bit for bit")
    return 0


if __name__ == "__main__":
    sys.exit(main())
