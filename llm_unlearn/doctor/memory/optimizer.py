"""Bytes that an optimizer keeps for each weight that trains, and takes while it steps; by its name in the recipe.

`trained` is (count, bytes per number, of an embedding) → how many weights of that kind train.
"""

SMALLEST_8BIT = 4096  # numbers of a tensor below which bitsandbytes keeps 32 bits
BLOCK = 256  # numbers that share a float32 scale there
STATES = {"sgd": 0, "adagrad": 1, "rmsprop": 1, "lion": 1, "ademamix": 3}  # moments; of all others two, as Adam has
BITSANDBYTES = ("8bit", "paged", "bnb", "lion", "ademamix")  # words in the names of its optimizers

Trained = dict[tuple[int, int, bool], int]


def state_bytes(optim: str, trained: Trained, momentum: bool = False) -> int:
    """Bytes of an optimizer's state.

    torch's optimizers keep moments in the weight's own type; bitsandbytes in 32 bits, or in 8 with a scale per block of
    256 (Dettmers et al. 2022, arXiv 2110.02861), where embeddings and small tensors stay in 32. Adafactor keeps a
    vector for rows and one for columns of a matrix, which is next to nothing.

    Args:
        optim: the optimizer's name, as in the recipe.
        trained: how many weights of each kind train, see the top of this module.
        momentum: whether SGD uses momentum; ignored for other optimizers.
    """
    if optim == "adafactor":
        return 0
    name = optim.removeprefix("paged_")
    moments = next((count for start, count in STATES.items() if name.startswith(start)), 2)
    moments += optim == "sgd" and momentum

    def per_number(count: int, size: int, embedding: bool) -> float:
        if "8bit" in optim and not embedding and count >= SMALLEST_8BIT:
            return 1 + 4 / BLOCK
        return 4 if any(word in optim for word in BITSANDBYTES) else size

    return round(moments * sum(times * kind[0] * per_number(*kind) for kind, times in trained.items()))


def engine_bytes(optim: str, trained: Trained) -> int:
    """Bytes of the state under DeepSpeed: float32 moments beside float32 copies of the weights (Rajbhandari et al.
    2020, arXiv 1910.02054, section 3.1: 12 bytes per weight for Adam).
    """
    in_float32 = [((count, 4, embedding), times) for (count, _, embedding), times in trained.items()]
    return 4 * numbers(trained) + sum(state_bytes(optim, {kind: times}) for kind, times in in_float32)


def step_bytes(optim: str, trained: Trained, on_gpu: bool) -> int:
    """Bytes that torch's optimizers take for a moment while they step.

    Adam's denominator: on a GPU of all weights at once (`foreach`), on a CPU of one weight after the other, twice. One
    kernel does it for SGD, fused optimizers and bitsandbytes.
    """
    if optim not in ("adamw_torch", "adagrad", "rmsprop"):
        return 0
    if on_gpu:
        return sum(times * count * size for (count, size, _), times in trained.items())
    return 2 * max((count * size for count, size, _ in trained), default=0)


def numbers(trained: Trained) -> int:
    """How many numbers train."""
    return sum(times * count for (count, _, _), times in trained.items())
