"""FLOPs of forward and backward passes, the unit of compute budgets.

Only matrix products count: 2 FLOPs per weight and token forward, 2 for the gradient of activations, 2 for the gradient
of each trainable weight (Kaplan et al. 2020, arXiv 2001.08361, section 2.1). The LM head counts only at supervised
positions, where it runs. Padding and attention's T² term are left out.
"""

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class FlopCounter:
    """FLOPs per token (body) and per supervised position (head).

    Args:
        body: weights in matrix products per token; biases and norms, which act elementwise, do not count.
        head: the same per supervised position.
        trainable_body: weights of the body that train.
        trainable_head: weights of the head that train.
    """

    body: int
    head: int
    trainable_body: int
    trainable_head: int

    @classmethod
    def of(cls, model: nn.Module, without: str | None = None) -> "FlopCounter":
        """Count a causal LM's weights; quantised weights count as the weights that they encode.

        Args:
            model: the causal LM.
            without: an adapter to leave out.
        """
        output_embeddings = getattr(model, "get_output_embeddings", None)
        head = output_embeddings() if output_embeddings else None
        head_id = id(head.weight) if head is not None else None
        lookups = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)} - {head_id}
        matrices = [
            p
            for n, p in model.named_parameters()
            if p.ndim > 1 and id(p) not in lookups and without not in n.split(".")
        ]
        body = [p for p in matrices if id(p) != head_id]
        heads = [p for p in matrices if id(p) == head_id]
        trainable = [[p for p in weights if p.requires_grad] for weights in (body, heads)]
        return cls(*(sum(map(_size, weights)) for weights in (body, heads, *trainable)))

    def forward(self, tokens: int, positions: int, share: float = 1.0) -> float:
        """FLOPs of a forward pass over `tokens`, `positions` of them supervised, through `share` of the body."""
        return 2.0 * (share * self.body * tokens + self.head * positions)

    def training(self, tokens: int, positions: int, share: float = 1.0, backward_share: float = 1.0) -> float:
        """FLOPs of a forward and a backward pass.

        Gradients of activations cost as much as the forward pass, and gradients of weights are taken for those that
        train.

        Args:
            tokens: tokens in the pass.
            positions: supervised positions among them.
            share: share of the body in the forward pass.
            backward_share: share of the body in the backward pass, which ends at the first trainable weight.
        """
        weights = 2.0 * (self.trainable_body * tokens + self.trainable_head * positions)
        return self.forward(tokens, positions, share) + self.forward(tokens, positions, backward_share) + weights


def _size(parameter: nn.Parameter) -> int:
    """Weights in a parameter; bitsandbytes packs two 4-bit weights into a byte and stores the shape apart."""
    state = getattr(parameter, "quant_state", None)
    return int(state.shape.numel()) if state is not None else parameter.numel()
