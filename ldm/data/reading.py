"""How shards are read: what is kept near, how often is tried, how much may be lost."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Reading:
    """`window` samples are shuffled together; a share of at most `tolerate` may be unreadable.

    With `salvage` a shard that was cut gives its whole samples instead of an error.
    `cache` is the folder for copies of remote shards and for indexes that cannot be written beside
    their shards (default: ldm under $XDG_CACHE_HOME or ~/.cache), of at most `cache_gigabytes`.
    While they are read, those that are needed `ahead` samples later are fetched; 0 fetches none.
    `retries` and `timeout` (seconds) hold for each shard. `pipe` allows `pipe:` addresses, which
    run a shell command.
    """

    window: int = 10_000
    tolerate: float = 0.01
    salvage: bool = False
    cache: str | None = None
    cache_gigabytes: float = 50.0
    ahead: int = 10_000
    retries: int = 4
    timeout: float = 300.0
    pipe: bool = False

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"data.reading.window is {self.window}; set it to 1 or more samples")
        if self.ahead < 0:
            raise ValueError(f"data.reading.ahead is {self.ahead}; set 0 or more samples")
        if self.retries < 0:
            raise ValueError(f"data.reading.retries is {self.retries}; set 0 or more")
        if not self.timeout > 0:
            raise ValueError(f"data.reading.timeout is {self.timeout}; set some seconds")
        if not self.cache_gigabytes > 0:
            raise ValueError(
                f"data.reading.cache_gigabytes is {self.cache_gigabytes}; set more than 0"
            )
        if not 0 <= self.tolerate < 1:
            raise ValueError(f"data.reading.tolerate is {self.tolerate}; set a share in [0, 1)")
