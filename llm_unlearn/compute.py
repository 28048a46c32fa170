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
        body, head: weights multiplied per token and per supervised position. trainable: those of both that train.
    """

    body: int
    head: int
    trainable: int

    @classmethod
    def of(cls, model: nn.Module) -> "FlopCounter":
        """Count a causal LM's weights; quantised weights count as the weights they stand for."""
        head = model.get_output_embeddings()
        head_id = id(head.weight) if head is not None else None
        lookups = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)} - {head_id}
        multiplied = {id(p): p for p in model.parameters() if id(p) not in lookups}
        sizes = {key: _size(p) for key, p in multiplied.items()}
        head_size = sizes.pop(head_id, 0)
        trainable = sum(_size(p) for p in multiplied.values() if p.requires_grad)
        return cls(sum(sizes.values()), head_size, trainable)

    def forward(self, tokens: int, positions: int) -> float:
        """FLOPs of a forward pass over `tokens`, `positions` of them supervised."""
        return 2.0 * (self.body * tokens + self.head * positions)

    def training(self, tokens: int, positions: int) -> float:
        """FLOPs of forward + backward: activations' gradients as much as the forward, weights' for what trains."""
        share = self.trainable / max(self.body + self.head, 1)
        return self.forward(tokens, positions) * (2.0 + share)


def _size(parameter: nn.Parameter) -> int:
    """Weights in a parameter; bitsandbytes packs two 4-bit weights in a byte and keeps the shape aside."""
    state = getattr(parameter, "quant_state", None)
    return int(state.shape.numel()) if state is not None else parameter.numel()
