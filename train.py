"""The one door to training: `python train.py experiment=emoji/diffusion key=value`."""

import sys

import hydra
from omegaconf import DictConfig

from ldm.commands.errors import FAILED, REFUSED, reported
from ldm.runs.processes import requeue, tell_final
from ldm.runs.signals import RETRY, SAVED, stop_signals

stop_signals.install()  # a job may be told to stop while it is still importing


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(config: DictConfig) -> None:
    """Compose the configuration, then hand it on; what is heavy is imported only here."""
    from ldm.commands.train import train

    # Reported here, or Hydra would add a story of its own.
    code = reported(lambda: train(config))
    if code in (SAVED, RETRY):
        requeue()
    if code:
        leave(code)


def leave(code: int) -> None:
    """End with this code."""
    tell_final(code, (REFUSED, FAILED))
    sys.exit(code)


if __name__ == "__main__":
    leave(reported(main))
