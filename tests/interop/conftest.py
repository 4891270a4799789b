"""What the interop tests share."""

import os
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"

with warnings.catch_warnings():
    # OmegaConf's DictConfig is, for beartype, annotated in a deprecated way.
    warnings.simplefilter("ignore")
    import ldm.commands.parts  # noqa: F401
