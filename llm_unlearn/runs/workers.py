"""Work on several stages of runs at a time, each in a process of its own that has one of the GPUs, where there are."""

import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing.connection import wait as wait_for_end
from typing import Any


def default_jobs() -> int:
    """As many as there are GPUs, or one."""
    import torch

    return max(1, torch.cuda.device_count())


def run_all(work: Callable[..., None], items: list[tuple], needs: dict[int, set[int]], jobs: int) -> None:
    """Call `work(*item)` for every item, at most `jobs` at a time; each with one GPU of its own where there are any.

    Args:
        work: is given the values of an item.
        items: one tuple of values for each call.
        needs: item → the items that must end before it starts; indices into `items`, those needed earlier.
        jobs: how many run at a time.

    Raises:
        Exception: the first error of an item. What is running ends first; what has not begun is left out.
    """
    if jobs == 1 or len(items) == 1:
        for item in items:
            work(*item)
        return
    context = multiprocessing.get_context("spawn")  # a process that is to choose its GPU must not have torch yet
    slots = context.Queue()
    gpus = _visible_gpus()
    for slot in range(jobs):
        slots.put(gpus[slot % len(gpus)] if gpus else None)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with ProcessPoolExecutor(jobs, context, _prepare, (slots, threads)) as pool:
        waiting, running = list(range(len(items))), dict[Future, int]()
        done: set[int] = set()
        while waiting or running:
            for index in [i for i in waiting if needs.get(i, set()) <= done][: jobs - len(running)]:
                waiting.remove(index)
                running[pool.submit(work, *items[index])] = index
            ended, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                done.add(running.pop(future))
                if (error := future.exception()) is not None:
                    waiting.clear()
                    wait(running)
                    raise error


def _prepare(slots: Any, threads: int) -> None:
    """In a new process, before torch is imported: its GPU, or its share of the cores, and its end with the parent's."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    gpu = slots.get()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))


def _end_with_parent() -> None:
    """End this process when the one that started it is gone, or it would go on writing into a run that was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for_end([parent.sentinel])
    os._exit(1)


def _visible_gpus() -> list[str]:
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name for name in given.split(",") if name]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]
