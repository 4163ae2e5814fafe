"""Plays several seeds or settings of a fleet, as many at a time as there are cores."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import Array
from typing import Any

from tools.progress import Tell
from tools.simulation.fleet_world import simulate
from tools.simulation.scenario.fleet_settings import Outcome, Settings

__all__ = ["Run", "play_all"]

LOOK_S = 0.5  # between two looks at how far the processes are

Run = tuple[int, Settings]  # a seed, and what is played with it


def play_all(
    runs: Sequence[Run],
    jobs: int | None = None,
    tell: Tell = lambda share, words: None,
    *,
    noun: str = "seed",
) -> Iterator[Outcome]:
    """Yield the outcome of each of ``runs``, in their order; ``jobs`` processes, one per core.

    ``tell`` hears how far all of them together are. ``noun`` is what a run is called.
    """
    jobs = min(jobs or os.cpu_count() or 1, len(runs))
    if jobs > 1:
        yield from _play_at_once(runs, jobs, tell, noun)
        return
    for number, (seed, settings) in enumerate(runs):

        def heard(share: float, words: str, number: int = number) -> None:
            tell((number + share) / len(runs), _words(number, len(runs), words, noun))

        yield simulate(seed, settings, heard)


def _play_at_once(runs: Sequence[Run], jobs: int, tell: Tell, noun: str) -> Iterator[Outcome]:
    shares = Array("d", len(runs))  # in memory that all processes share
    with ProcessPoolExecutor(jobs, initializer=_share, initargs=(shares,)) as pool:
        futures = [pool.submit(_play_one, number, *run) for number, run in enumerate(runs)]
        try:
            for future in futures:
                yield _awaited(future, futures, shares, tell, noun)
        except BaseException:  # the others are of no use any more
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _awaited(
    future: "Future[Outcome]",
    futures: "Sequence[Future[Outcome]]",
    shares: Any,
    tell: Tell,
    noun: str,
) -> Outcome:
    while not future.done():
        wait([future], timeout=LOOK_S, return_when=FIRST_COMPLETED)
        done = sum(one.done() for one in futures)
        tell(sum(shares) / len(shares), _words(done, len(futures), "", noun))
    return future.result()


def _words(done: int, count: int, words: str, noun: str) -> str:
    if count == 1:
        return words
    return ", ".join(filter(None, [f"{done} of {count} {noun}s done", words]))


_shares: Any = None  # of this process, which plays for another one


def _share(shares: Any) -> None:
    global _shares
    _shares = shares


def _play_one(number: int, seed: int, settings: Settings) -> Outcome:
    def heard(share: float, words: str) -> None:
        _shares[number] = share

    return simulate(seed, settings, heard)
