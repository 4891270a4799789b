"""What bash offers, asked of bash: choices in subfolders, keys, verbs, options."""

import shutil
import subprocess
import sys

import pytest

from ldm.commands.completion import script

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")

CASES = {
    "python train.py exp": ["experiment="],
    "python train.py experiment=emo": ["emoji/autoencoder", "emoji/clip", "emoji/diffusion"],
    "python3 train.py seed=1 backbone=dit_x": ["dit_xl_2"],
    "python train.py experiment=emoji/clip module.optimizer.l": ["module.optimizer.lr="],
    "python other.py exp": [],
    "python train": [],
    "ldm gal": ["gallery"],
    "ldm runs cl": ["clean"],
    "ldm sample runs/a --guidance-i": ["--guidance-interval"],
    "ldm check sampler=dpmpp_2m_": ["dpmpp_2m_sde"],
    "ldm check precis": ["precision="],
}


def test_a_reader_that_has_seen_enough_is_no_error():
    """As in `ldm completion | head -1`."""
    words = [sys.executable, "-m", "ldm.commands", "completion"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_bash_offers_what_there_is(tmp_path):
    (tmp_path / "ldm.bash").write_text(script())
    lines = [f"source {tmp_path / 'ldm.bash'}"]
    for line in CASES:
        lines += [f'COMP_LINE="{line}"; COMP_POINT=${{#COMP_LINE}}; _ldm', 'echo "${COMPREPLY[*]}"']
    done = subprocess.run(
        ["bash", "--norc", "-c", "\n".join(lines)], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert dict(zip(CASES, map(str.split, done.stdout.splitlines()), strict=True)) == CASES
