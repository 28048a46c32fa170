"""What a training takes in time: by the wall clock, and of the devices that it ran on."""

import time

from llm_unlearn.distributed.processes import Processes


class Stopwatch:
    """Runs from the moment when it is made."""

    def __init__(self) -> None:
        self._wall, self._threads = time.perf_counter(), time.process_time()

    def read(self, device: str) -> dict[str, float]:
        """{"seconds", "device_seconds"} since the start.

        Args:
            device: the type on which the model is. On a CPU the time of all threads counts, on any other device the
                wall clock; either once for each process, as if all were like this one.
        """
        seconds = time.perf_counter() - self._wall
        used = time.process_time() - self._threads if device == "cpu" else seconds
        return {"seconds": seconds, "device_seconds": used * Processes.current().count}
