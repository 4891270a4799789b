"""Which of a training's processes this is, before anything is initialised."""

import os
import platform
import re
import socket
import subprocess


def check_address() -> None:
    """ValueError when the ranks are to meet at a host that this one does not know: the libraries
    would wait for it for half an hour."""
    address = os.environ.get("MASTER_ADDR")
    if not address or not os.environ.keys() & {"RANK", "SLURM_PROCID"}:
        return
    try:
        socket.getaddrinfo(address, None)
    except OSError:
        raise ValueError(
            f"MASTER_ADDR={address}: {platform.node()} finds no such host; set MASTER_ADDR to a "
            "name or an address of rank 0's host that every host finds"
        ) from None


def rank() -> int:
    """This process's number over all nodes: as torchrun, srun or Lightning's launcher set it."""
    for name in ("RANK", "SLURM_PROCID"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    # Lightning's own launcher: a node's first process has local rank 0 or none.
    return int(os.environ.get("LOCAL_RANK", 0)) or int(os.environ.get("NODE_RANK", 0))


def world() -> int:
    """How many processes torchrun or srun started together."""
    for name in ("WORLD_SIZE", "SLURM_NTASKS"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 1


def watched_by_lightning() -> bool:
    """Whether Lightning's launcher started this process; it kills all when one ends with a code."""
    outside = os.environ.keys() & {"RANK", "SLURM_PROCID"}
    return not outside and int(os.environ.get("LOCAL_RANK", 0)) > 0


def restarts() -> int:
    """How often Slurm or torchrun has started this job again."""
    names = ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT")
    return max(int(os.environ.get(name) or 0) for name in names)


def job() -> str:
    """The Slurm job and array task, or nothing."""
    return os.environ.get("SLURM_JOB_ID", "")


def job_end() -> str | None:
    """When Slurm will end this job, as Slurm writes times; None outside of jobs and where there is
    no `scontrol`."""
    if not job():
        return None
    try:
        done = subprocess.run(
            ["scontrol", "show", "job", job()],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"EndTime=(\S+)", done.stdout)
    return match[1] if match else None


def tell_final(code: int, final: tuple[int, ...]) -> None:
    """Leave a code that another start will not change in the file that the batch script names
    (`LDM_FINAL`): of ranks that end and ranks that it then kills, srun gives the largest code."""
    path = os.environ.get("LDM_FINAL")
    if path and code in final:
        with open(path, "w", encoding="utf-8") as file:
            file.write(f"{code}\n")


def requeue() -> None:
    """Put the Slurm job back into the queue where no batch script does it: under submitit."""
    if os.environ.get("SUBMITIT_EXECUTOR") != "slurm" or rank() != 0:
        return
    parts = (os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID"))
    name = "_".join(part for part in parts if part) or job()
    subprocess.run(["scontrol", "requeue", name], check=False)
