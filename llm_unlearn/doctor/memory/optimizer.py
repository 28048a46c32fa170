"""Bytes that an optimizer keeps for each weight that trains, and takes while it steps; by its name in the recipe."""

SMALLEST_8BIT = 4096  # numbers of a tensor below which bitsandbytes keeps 32 bits
BLOCK = 256  # numbers that share a float32 scale there
STATES = {"sgd": 0, "adagrad": 1, "rmsprop": 1, "lion": 1, "ademamix": 3}  # moments; of all others two, as Adam has
ENGINE_MASTER = 4  # bytes: DeepSpeed's float32 copy of each weight that trains, whatever the model's own type

Weights = list[tuple[int, int, bool]]  # (count, bytes per number, of an embedding) of each weight that trains


def moments(optim: str) -> int:
    """How many numbers an optimizer keeps per weight."""
    name = optim.removeprefix("paged_")
    return next((count for start, count in STATES.items() if name.startswith(start)), 2)


def state_bytes(optim: str, trained: Weights, momentum: bool = False) -> int:
    """Bytes of an optimizer's state.

    torch's optimizers keep moments in the weight's own type; bitsandbytes in 32 bits, or in 8 with a scale per block of
    256 (Dettmers et al. 2022, arXiv 2110.02861), where embeddings and small tensors stay in 32. Adafactor keeps a
    vector for rows and one for columns of a matrix, which is next to nothing.

    Args:
        momentum: whether SGD has it.
    """
    if optim == "adafactor":
        return 0
    count = moments(optim) + (optim == "sgd" and momentum)
    bits8 = "8bit" in optim
    library = bits8 or "paged" in optim or "bnb" in optim or "lion" in optim or "ademamix" in optim
    total = 0.0
    for numbers, size, embedding in trained:
        if bits8 and not embedding and numbers >= SMALLEST_8BIT:
            total += count * numbers * (1 + 4 / BLOCK)
        else:
            total += count * numbers * (4 if library else size)
    return round(total)


def engine_bytes(optim: str, trained: Weights) -> int:
    """Bytes of the state under DeepSpeed: float32 moments beside float32 copies of the weights (Rajbhandari et al.
    2020, arXiv 1910.02054, section 3.1: 12 bytes per weight for Adam)."""
    numbers = sum(count for count, _, _ in trained)
    return ENGINE_MASTER * numbers + state_bytes(optim, [(count, 4, embedding) for count, _, embedding in trained])


def step_bytes(optim: str, trained: Weights, on_gpu: bool) -> int:
    """Bytes that torch's optimizers take for a moment while they step.

    Adam's denominator: on a GPU of all weights at once (`foreach`), on a CPU of one weight after the other, twice. One
    kernel does it for SGD, fused optimizers and bitsandbytes.
    """
    if optim not in ("adamw_torch", "adagrad", "rmsprop"):
        return 0
    sizes = [count * size for count, size, _ in trained]
    return sum(sizes) if on_gpu else 2 * max(sizes, default=0)
