"""What a person sees when something is refused: one line, and an exit code that means something.

0 done, 1 died of what another start may not die of, 2 refused before anything was trained
(configuration, data, files), 3 failed in training, 130 ended by Ctrl-C.
"""

import difflib
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

DIED, REFUSED, FAILED = 1, 2, 3
INTERRUPTED = 130  # as a shell has it
CONF = Path(__file__).parents[2] / "conf"


def reported(main: Callable[[], Any]) -> int:
    """Run `main`; turn what it refuses into one line on stderr and exit code 2."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra re-raises instead of printing its own story
    try:
        return main() or 0
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        # Hydra's and OmegaConf's classes, of which some are ValueErrors, without importing either
        if type(error).__module__.split(".")[0] in ("hydra", "omegaconf"):
            return _say(explain(error, sys.argv[1:]))
        if isinstance(error, OSError) and error.errno is not None:
            return _disk(error)
        # safetensors and torch.save have the disk's errors as their own; torch does not say which
        if re.search(r"PytorchStreamWriter|unexpected pos \d+ vs", str(error)):
            return _say("a file could not be written to its end; make room, or name another place")
        if match := re.search(r"I/O error: .*\(os error (\d+)\)", str(error)):
            return _disk(OSError(int(match[1]), os.strerror(int(match[1]))))
        if isinstance(error, ValueError | FileNotFoundError):  # the latter of our own words
            return _say(str(error))
        raise


def _disk(error: OSError) -> int:
    """What a disk or a path refuses; a reader that has seen enough is no fault."""
    if isinstance(error, BrokenPipeError):
        raise error
    found = error.filename2 or error.filename  # of a renaming, where to
    place = "" if found is None else f"{found}: "
    return _say(f"{place}{error.strerror}; name another place, or make room or way")


def explain(error: Exception, arguments: list[str]) -> str:
    """One line for a configuration that Hydra refuses, with the nearest name that exists."""
    text = str(error)
    if match := re.search(r"Could not override '([^']+)'", text):
        return _unknown_key(match[1], arguments)
    if match := re.search(r"Could not find '([^']+)'.*?Available options in '([^']+)'", text, re.S):
        group, choice = match[2], match[1].removeprefix(match[2] + "/")
        return unknown_choice(group, choice)
    if match := re.search(r"Could not find '([^']+)'", text):
        group, _, choice = match[1].rpartition("/")
        while group and not (CONF / group).is_dir():
            group, _, head = group.rpartition("/")
            choice = f"{head}/{choice}"
        return unknown_choice(group, choice) if group else " ".join(text.split())
    if match := re.match(r"LexerNoViableAltException: ([^=\s]+)=(\S.*)", text):
        key, value = match.groups()
        return f"{key}={value}: a sign in it needs quotes within quotes; write '{key}=\"{value}\"'"
    if match := re.search(r"Missing mandatory value: (\S+)(?:.*?full_key: (\S+))?", text, re.S):
        key = match[2] or match[1]
        return f"{key}: not set, and there is no default; set {key}=VALUE"
    if match := re.search(r"Key '[^']+' is not in struct.*?full_key: (\S+)", text, re.S):
        return f"{match[1]}: needed, and not in this configuration; set {match[1]}=VALUE"
    if match := re.search(r"Interpolation key '([^']+)' not found.*?full_key: (\S+)", text, re.S):
        return f"{match[1]}: not in this configuration, and {match[2]} follows it; set {match[1]}"
    if match := re.search(r"LexerNoViableAltException: (.*?)\n", text):
        return (
            f"{match[1]}: holds a letter that Hydra reads in quotes only, within the shell's own; "
            "write 'KEY=\"VALUE\"'"
        )
    if match := re.search(r"Error parsing override '(.*?)'\nmissing EQUAL", text, re.S):
        return f"{match[1]!r} is no setting; write KEY=VALUE, such as seed=1"
    return " ".join(text.split())


def nearest(name: str, names: list[str]) -> str:
    """ "; did you mean 'x'?" or nothing."""
    close = difflib.get_close_matches(name, names, 1, 0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def _unknown_key(key: str, arguments: list[str]) -> str:
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    from ldm.runs.folder import flatten

    GlobalHydra.instance().clear()
    good = [a for a in arguments if "=" in a and a.split("=")[0].lstrip("+~") != key]
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            tree = OmegaConf.to_container(compose("train", good), resolve=False)
        assert isinstance(tree, dict)
        known = list(flatten({str(k): v for k, v in tree.items()}))
        known += sorted({k.rsplit(".", n)[0] for k in known for n in range(1, k.count(".") + 1)})
    except Exception:  # another argument is wrong as well; the key is named all the same
        known = []
    if key in known:
        return f"{key}: set, and taken out by a ~ at once; leave one of the two out"
    leaves = [k for k in known if k.rsplit(".")[-1] == key.rsplit(".")[-1]]
    hint = f"; did you mean {leaves[0]!r}?" if leaves else nearest(key, known)
    more = f"; an argument left at its default is written +{key}=…" if _is_call(key, known) else ""
    return f"{key}: no such key in this configuration{hint} (`--cfg job` prints all keys{more})"


def _is_call(key: str, known: list[str]) -> bool:
    """Whether the key would be an argument of a part that the configuration builds."""
    return f"{key.rpartition('.')[0]}._target_" in known


def choices_of(group: str) -> list[str]:
    """The names of a group, subfolders with."""
    folder = CONF / group
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))


def unknown_choice(group: str, choice: str) -> str:
    """One line that lists what there is."""
    names = choices_of(group)
    return (
        f"{group}={choice}: no such choice{nearest(choice, names)} (there are: {', '.join(names)})"
    )


def _say(text: str) -> int:
    print(f"error: {' '.join(text.split())}", file=sys.stderr)
    return REFUSED
