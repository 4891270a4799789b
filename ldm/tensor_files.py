"""Tensors by name in one .safetensors file."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from ldm.files import drafted


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, str] | None = None
) -> None:
    """Whole or not at all, with `notes` in its header; a file that was there is replaced. Others
    may read it as any new file here: the library's own are the writer's alone."""
    content = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with drafted(path) as draft:
        draft.touch()
        mode = draft.stat().st_mode
        save_file(content, draft, dict(notes or {"format": "pt"}))
        draft.chmod(mode)
