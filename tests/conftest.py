"""What holds for every test: no model hub is asked, with or without a network."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported, and for child processes
