"""FLOPs of forward and backward passes, the currency in which budgets are given.

Matrix products only, by the usual counts: 2 FLOPs per weight and token forward, 2 for the gradient of activations, 2
for the gradient of each weight that trains (Kaplan et al. 2020, arXiv 2001.08361, section 2.1). The LM head counts at
supervised positions only, since it runs only there; attention's T² term is left out; padding is not counted.
"""

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class FlopCounter:
    """FLOPs per token (body) and per supervised position (head).

    Args:
        body, head: weights multiplied per token and per supervised position; biases and norms, which are added or
            multiplied elementwise, do not count.
        trainable_body, trainable_head: those of them that train.
    """

    body: int
    head: int
    trainable_body: int
    trainable_head: int

    @classmethod
    def of(cls, model: nn.Module, without: str | None = None) -> "FlopCounter":
        """Count a causal LM's weights; quantised weights count as the weights they stand for.

        Args:
            without: an adapter whose weights are left out.
        """
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        head_id = id(head.weight) if head is not None else None
        lookups = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)} - {head_id}
        matrices = [
            p
            for n, p in model.named_parameters()
            if p.ndim > 1 and id(p) not in lookups and without not in n.split(".")
        ]
        body = [p for p in matrices if id(p) != head_id]
        heads = [p for p in matrices if id(p) == head_id]
        train = [[p for p in part if p.requires_grad] for part in (body, heads)]
        return cls(*(sum(map(_size, part)) for part in (body, heads, *train)))

    def forward(self, tokens: int, positions: int, share: float = 1.0) -> float:
        """FLOPs of a forward pass over `tokens`, `positions` of them supervised; `share` of the body is run."""
        return 2.0 * (share * self.body * tokens + self.head * positions)

    def training(self, tokens: int, positions: int, share: float = 1.0, backward_share: float = 1.0) -> float:
        """FLOPs of forward + backward: activations' gradients as much as the forward, weights' for what trains.

        Args:
            share: of the body that is run.
            backward_share: of the body that the backward pass goes through, which ends at the first weight that trains.
        """
        weights = 2.0 * (self.trainable_body * tokens + self.trainable_head * positions)
        return self.forward(tokens, positions, share) + self.forward(tokens, positions, backward_share) + weights


def _size(parameter: nn.Parameter) -> int:
    """Weights in a parameter; bitsandbytes packs two 4-bit weights in a byte and keeps the shape aside."""
    state = getattr(parameter, "quant_state", None)
    return int(state.shape.numel()) if state is not None else parameter.numel()
