"""Activations and logits of a transformer by a formula, for architectures that cannot be run without data."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Formula:
    """Korthikanti et al. 2022 (arXiv 2205.05198), equation 2: a layer keeps 34 h bytes per token in 16-bit numbers; its
    5 a s belongs to attention scores, which fused attention does not keep.

    Args:
        hidden: h. length: s, tokens of a row. size: bytes of a number. checkpointing: keep each layer's input alone,
            and one layer while it is run again (section 5, full recomputation).
    """

    hidden: int
    length: int
    size: int
    checkpointing: bool

    def activations(self, rows: int, layers: int) -> int:
        """Bytes of a forward on so many rows."""
        given = rows * self.length * self.hidden * self.size  # a layer's input
        return 17 * given + layers * given if self.checkpointing else 17 * given * layers

    @staticmethod
    def logits(positions: int, of_reference: int, vocabulary: int) -> int:
        """Bytes of logits in float32, with their log-softmax and its gradient; the reference's with its log-softmax."""
        return 4 * vocabulary * (3 * positions + 2 * of_reference)
