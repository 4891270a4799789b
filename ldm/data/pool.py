"""Work shared out among processes that end with their parent."""

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from typing import Any

Run = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]  # as `map` is called


@contextmanager
def pool(jobs: int, chunk: int) -> Iterator[Run]:
    """A `map` over so many processes, `chunk` items at a time; one job runs in this process.

    Ctrl-C ends this process alone, quietly, and drops what is waiting. A process that dies is a
    ValueError.
    """
    if jobs == 1:
        yield map
        return
    executor = ProcessPoolExecutor(jobs, initializer=_leave_interrupts_to_the_parent)
    try:
        yield partial(executor.map, chunksize=chunk)
    except BrokenProcessPool:
        raise ValueError(
            "a process died, most often because the memory ran out; the same command goes on, with "
            "a lower --jobs if it happens again"
        ) from None
    finally:
        executor.shutdown(cancel_futures=True)


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
