"""Standard normal numbers by a counter: number i depends on (key, stream, i) alone, not on device, process or batch.

Philox 4×32-10 of Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", in 64-bit integers of torch, then
Box and Muller 1958. Integers are the same on every device, floats to the last bits.
"""

import math
from typing import Any

import torch
from torch import Tensor

ROUNDS = 10
MULTIPLIERS, WEYL, LOW = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85), 0xFFFFFFFF
CHUNK = 2**18  # blocks of four at a time: what is in between stays in a cache

Word = Any  # 32 bits, in an int64 tensor or a number


def philox(counter: tuple[Word, Word, Word, Word], key: tuple[int, int]) -> tuple[Word, Word, Word, Word]:
    """Four random words of 32 bits for each counter.

    Args:
        counter: four words, int64 tensors of one shape or numbers.
        key: two words.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]  # modulo 2⁶⁴, which is what they are cut from
        c0, c1 = (p1 >> 32) & LOW ^ c1 ^ k0, p1 & LOW
        c2, c3 = (p0 >> 32) & LOW ^ c3 ^ k1, p0 & LOW
        k0, k1 = (k0 + WEYL[0]) & LOW, (k1 + WEYL[1]) & LOW
    return c0, c1, c2, c3


def normal_draws(shape: torch.Size, key: int, stream: int, device: torch.device) -> Tensor:
    """Independent standard normal numbers, float32, drawn on the device.

    Args:
        shape: of the result.
        key: 64 bits; another key gives independent numbers.
        stream: 32 bits; another stream gives independent numbers too.
        device: where they are drawn.
    """
    n = math.prod(shape)
    out = torch.empty(n, device=device)
    for start in range(0, -(-n // 4), CHUNK):
        block = torch.arange(start, min(start + CHUNK, -(-n // 4)), device=device)
        words = philox((block & LOW, block >> 32, stream, 0), (key & LOW, key >> 32))
        u, v, u2, v2 = ((word.float() + 0.5) * 2.0**-32 for word in words)
        radius, angle = torch.sqrt(-2 * torch.log(torch.stack([u, u2]))), 2 * math.pi * torch.stack([v, v2])
        four = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)])  # (4, blocks)
        out[4 * start : 4 * (start + len(block))] = four.t().flatten()[: n - 4 * start]
    return out.view(shape)
