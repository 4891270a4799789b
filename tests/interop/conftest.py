"""What the interop tests share."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
