"""Which of several launched processes this is, and how they exchange results."""

import atexit
import functools
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

from llm_unlearn.distributed.topology import Topology

Item = TypeVar("Item")
# How long processes wait for one another, for instance while one writes a large model. When a process dies, the
# launcher ends the others on its machine at once, and `srun` ends those on other machines.
PATIENCE = timedelta(hours=6)


@dataclass(frozen=True)
class Processes:
    """Process number `rank` of `count`. All processes must call the methods marked "Common", in the same order."""

    rank: int = 0
    count: int = 1

    @classmethod
    def start(cls) -> "Processes":
        """Connect the processes of this launch; without a launch there is one."""
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import PartialState

            PartialState(timeout=PATIENCE)
        return cls.current()

    @classmethod
    def current(cls) -> "Processes":
        """The processes that are connected now."""
        from torch import distributed

        if distributed.is_available() and distributed.is_initialized():
            return cls(distributed.get_rank(), distributed.get_world_size())
        return cls()

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> list[Item]:
        """Every `count`-th item, from `rank` on.

        All processes get equally many, since a sharded model runs in all of them or in none; the last item may repeat.
        Merging by position is not affected.
        """
        padded = -(-len(items) // self.count) * self.count
        return [items[min(i, len(items) - 1)] for i in range(self.rank, padded, self.count)]

    def part_of(self, batch_size: int, field: str) -> int:
        """Rows of a step in this process, of `batch_size` in all.

        Args:
            batch_size: rows of a step over all processes.
            field: the recipe's field with that number, for error messages.

        Raises:
            InputError: the processes cannot share the rows evenly.
        """
        return Topology(processes=self.count).rows_per_device(batch_size, f"recipe.{field}")

    def merged(self, part: Any) -> list[Any]:
        """The parts of all processes, by rank. Common."""
        if self.count == 1:
            return [part]
        from torch import distributed

        parts: list[Any] = [None] * self.count
        distributed.all_gather_object(parts, part, group=_group())
        return parts

    def from_main(self, value: Any) -> Any:
        """The main process's value. Common."""
        return self.merged(value if self.is_main else None)[0]

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process. Common."""
        return any(self.merged(bool(flag)))

    def wait(self) -> None:
        """Wait until all processes have come here. Common."""
        self.merged(None)


@functools.cache
def _group() -> Any:
    """All processes, connected over gloo: they exchange small CPU objects, so no GPU has to be synchronised."""
    from torch import distributed

    return distributed.new_group(backend="gloo", timeout=PATIENCE)


def exit_with(main: Callable[[], int | None]) -> NoReturn:
    """`sys.exit(main())`, except that a launched process that succeeds skips the interpreter's shutdown.

    A gloo thread frees its tensors shortly after a collective ends and needs the interpreter for that. An interpreter
    in shutdown kills the thread, and C++ then aborts the finished process with "terminate called without an active
    exception" (pytorch pull request 179291). `destroy_process_group` would end these threads, but not while a library
    such as DeepSpeed holds a group.
    """
    codes: list[int | None] = []

    def end() -> None:
        if codes and not codes[0]:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)

    if "RANK" in os.environ:
        atexit.register(end)  # registered first, so it runs last
    codes.append(main())
    sys.exit(codes[0])


ALONE = Processes()
