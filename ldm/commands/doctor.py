"""`ldm doctor`: what this machine has, and what to do about what it lacks."""

import argparse
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

GOOD, NOTE, BAD = "ok", "note", "BAD"
Finding = tuple[str, str, str, str]  # verdict, what, found, what to do


def add_parser(subparsers: Any) -> None:
    """The verb and its options."""
    parser = subparsers.add_parser("doctor", help="check this machine, and say what to do")
    parser.add_argument("--shards", help="measure how fast these are read and decoded")
    parser.add_argument("--folder", default=".", help="whose disk is measured (default: here)")
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """One line a finding; exit code 1 when something must be done."""
    worst = GOOD
    for verdict, what, found, remedy in findings(Path(arguments.folder), arguments.shards):
        line = f"{verdict:>4}  {what:14} {found}"
        print(line + (f"  -> {remedy}" if remedy else ""), flush=True)
        worst = BAD if BAD in (verdict, worst) else worst
    return 1 if worst == BAD else 0


def findings(folder: Path, shards: str | None) -> Iterator[Finding]:
    """From the cheap to the slow."""
    yield _python()
    yield from _packages()
    yield from _devices()
    yield from _limits()
    yield from _slurm()
    yield from _weights()
    yield _disk(folder)
    yield _loader(shards or "asset:emoji/train-*.tar")


def _python() -> Finding:
    good = (3, 11) <= sys.version_info[:2] < (3, 14)
    remedy = "" if good else "use Python 3.11 to 3.13"
    return GOOD if good else BAD, "python", platform.python_version(), remedy


def _packages() -> Iterator[Finding]:
    for name in ("torch", "lightning", "hydra-core", "open_clip_torch", "tensorboard"):
        try:
            yield GOOD, name, version(name), ""
        except PackageNotFoundError:
            yield BAD, name, "missing", "pip install -e ."


def _devices() -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            memory = f"{properties.total_memory / 2**30:.0f} GiB"
            yield GOOD, f"GPU {index}", f"{properties.name}, {memory}", ""
        yield GOOD, "CUDA", f"{torch.version.cuda}", ""
        nccl = torch.distributed.is_nccl_available()
        yield (
            GOOD if nccl else NOTE,
            "NCCL",
            "yes" if nccl else "no",
            "" if nccl else "needed for several GPUs: install a CUDA build of torch",
        )
        bf16 = torch.cuda.is_bf16_supported()
    else:
        yield NOTE, "GPU", "none", "trainer=cpu trains small models; large ones need a GPU"
        bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    remedy = "" if bf16 else "precision=auto takes 32-true here"
    yield GOOD if bf16 else NOTE, "bf16", "native" if bf16 else "not native", remedy
    yield GOOD, "CPU", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads", ""


def _limits() -> Iterator[Finding]:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = 0 <= soft < 4096
    remedy = f"ulimit -n {min(65536, hard) if hard > 0 else 65536}" if few else ""
    yield NOTE if few else GOOD, "open files", f"{soft}", remedy
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free / 2**30
        remedy = "" if free >= 1 else "docker run --shm-size=8g, or workers=0"
        yield GOOD if free >= 1 else NOTE, "shared memory", f"{free:.1f} GiB free", remedy


def _slurm() -> Iterator[Finding]:
    if "SLURM_JOB_ID" not in os.environ:
        yield GOOD, "SLURM", "not in a job", ""
        return
    tasks, nodes = os.environ.get("SLURM_NTASKS", "1"), os.environ.get("SLURM_NNODES", "1")
    yield GOOD, "SLURM", f"job {os.environ['SLURM_JOB_ID']}: {nodes} nodes, {tasks} tasks", ""


def _weights() -> Iterator[Finding]:
    from ldm.assets import resolve

    for name in ("asset:emoji_clip", "asset:emoji/train-00000.tar"):
        there = Path(resolve(name)).exists()
        remedy = "" if there else "take the clone's files whole: git checkout -- ldm/assets"
        yield GOOD if there else BAD, "shipped", f"{name} {'found' if there else 'missing'}", remedy


def _disk(folder: Path) -> Finding:
    """Written with fsync, so that memory is not what is measured."""
    size = 2**26
    try:
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            began = time.perf_counter()
            file.write(os.urandom(size))
            file.flush()
            os.fsync(file.fileno())
            seconds = time.perf_counter() - began
    except OSError as error:
        return BAD, "disk", f"{folder} cannot be written ({error.strerror})", "set run_root=DIR"
    free = shutil.disk_usage(folder).free / 2**30
    remedy = "" if free >= 5 else "checkpoints need room: set run_root=DIR on another disk"
    found = f"{size / seconds / 1e6:.0f} MB/s written, {free:.0f} GiB free"
    return GOOD if free >= 5 else NOTE, "disk", found, remedy


def _loader(shards: str) -> Finding:
    from ldm.data import ShardData, training_batches

    data = ShardData(shards, 64)
    batches = iter(
        training_batches(data, global_batch=64, rank=0, world=1, start=0, seed=0, workers=0)
    )
    next(batches)
    began = time.perf_counter()
    count = sum(len(next(batches)["caption"]) for _ in range(8))
    rate = count / (time.perf_counter() - began)
    return GOOD, "loader", f"{rate:.0f} pictures/s in one process, from {shards}", ""
