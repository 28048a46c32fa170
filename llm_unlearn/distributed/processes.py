"""Which of several processes this is (`accelerate launch`), and how they put their parts together."""

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
# How long one process may keep the others waiting, for instance with writing a large model. One that dies ends those of
# its machine at once, through the launcher, and `srun` ends the other machines'.
PATIENCE = timedelta(hours=6)


@dataclass(frozen=True)
class Processes:
    """Process number `rank` of `count`; all of them must call what is marked as common, and in the same order."""

    rank: int = 0
    count: int = 1

    @classmethod
    def start(cls) -> "Processes":
        """The processes of this launch, connected to each other; one where nothing was launched."""
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import PartialState

            PartialState(timeout=PATIENCE)
        return cls.current()

    @classmethod
    def current(cls) -> "Processes":
        """The processes that are connected now."""
        import torch.distributed as distributed

        if distributed.is_available() and distributed.is_initialized():
            return cls(distributed.get_rank(), distributed.get_world_size())
        return cls()

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> list[Item]:
        """Every `count`-th item. All get as many, the last one several times if need be: a model that is sharded over
        the processes runs in all of them or in none. What is merged by position does not change by it."""
        padded = -(-len(items) // self.count) * self.count
        return [items[min(i, len(items) - 1)] for i in range(self.rank, padded, self.count)]

    def part_of(self, batch_size: int, field: str) -> int:
        """Rows of a step that this process has, of `batch_size` in all.

        Raises:
            InputError: they cannot be dealt out evenly; `field` of the recipe says how many there are.
        """
        return Topology(processes=self.count).rows_per_device(batch_size, f"recipe.{field}")

    def merged(self, part: Any) -> list[Any]:
        """The parts of all processes, in the order of their ranks. Common."""
        if self.count == 1:
            return [part]
        import torch.distributed as distributed

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
        """Until all have come here. Common."""
        self.merged(None)


@functools.cache
def _group() -> Any:
    """All processes, connected over the host: what is exchanged are small objects on the CPU, for which no GPU need be
    waited for."""
    import torch.distributed as distributed

    return distributed.new_group(backend="gloo", timeout=PATIENCE)


def exit_with(main: Callable[[], int | None]) -> NoReturn:
    """`sys.exit(main())`; but a launched process that succeeds ends right after its exit handlers, without taking the
    interpreter apart.

    A thread of gloo gives its tensors back a moment after a collective is over, and asks for the interpreter to do so.
    One that is being taken apart ends such a thread, and C++ then aborts a process whose work was done, with "terminate
    called without an active exception" (pytorch pull request 179291). `destroy_process_group` ends these threads only
    where no library holds a group, and DeepSpeed does.
    """
    codes: list[int | None] = []

    def end() -> None:
        if codes and not codes[0]:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)

    if "RANK" in os.environ:
        atexit.register(end)  # before any other, so that it is the last to run
    codes.append(main())
    sys.exit(codes[0])


ALONE = Processes()
