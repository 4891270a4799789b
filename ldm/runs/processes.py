"""Which of a training's processes this is, before anything is initialised."""

import os


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
