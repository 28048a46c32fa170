"""The noise of Gaussian canaries. It is never stored: (seed, example id) → ξ, the same whatever the padding, the batch,
the device or the dtype.
"""

from collections.abc import Iterable
from hashlib import blake2b

import numpy as np

from llm_unlearn.errors import InputError

_MIXER = 0x9E3779B97F4A7C15  # odd, 2⁶⁴ over the golden ratio: ids and draws → ids of fresh noise that do not meet
FRESH_SEED_OFFSET = 1_000_003  # fresh noise: a seed that no training used
NO_NOISE = -1  # the noise id of a row that has none


def unit_noise(seed: int, example_id: int, *shape: int) -> np.ndarray:
    """The canary's standard normal draw z, ξ = ε z, from its own Philox stream.

    Args:
        seed: the seed of the noise, at least 0; with the example's id it is the key of the stream.
        example_id: the id of the canary, at least 0.
        *shape: (T, d) of a text, (C, H, W) of an image.

    Returns:
        float32 of that shape. The first rows do not depend on how many there are.

    Raises:
        InputError: the id is negative, that of a row without noise, which would get some that was never planted.
    """
    if example_id < 0:
        raise InputError(
            f"noise id {example_id}: the row has no noise, as when it was hidden from whoever unlearned; score "
            "canaries as they were planted, with the noise_id that plant_canaries gave them"
        )
    generator = np.random.Generator(np.random.Philox(key=[seed, example_id]))
    return generator.standard_normal(shape, dtype=np.float32)


def secret_ids(secret: str, names: Iterable[int | str]) -> list[int]:
    """Noise ids in the place of rows' own: who does not know the secret cannot tell one from another. They are below
    10¹⁵, which floats, JSON and spreadsheets keep; two of 10,000 are the same in 1 of 20 million cases.
    """
    digests = (blake2b(f"{secret} {name}".encode(), digest_size=8).digest() for name in names)
    return [int.from_bytes(digest, "big") % 10**15 for digest in digests]


def fresh_id(example_id: int, draw: int) -> int:
    """The id of a canary's k-th fresh noise or string: below 2⁶³, and another for every canary and draw."""
    return ((example_id + 1) * _MIXER + draw) % 2**63


def check_noise(epsilon: float, seed: int) -> None:
    """Raise InputError for a noise that cannot be: ε ≤ 0, or a negative seed."""
    if not epsilon > 0:
        raise InputError(f"epsilon must be above 0, is {epsilon}")
    if seed < 0:
        raise InputError(f"the noise seed must be 0 or more, is {seed}")
