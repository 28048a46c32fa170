"""The head and a loss, a chunk of positions at a time: values and gradients equal those of whole logits, whatever is
kept and whatever trains."""

from functools import partial

import pytest
import torch
from torch import nn

from llm_unlearn.losses import ce_u_token, token_kl, token_nll, undial_token
from llm_unlearn.tasks import Supervised, chunk_size, head
from llm_unlearn.tasks.kernels import kl_kernel, nll_kernel

pytestmark = pytest.mark.unit

N, H, V = 33, 8, 50


def values_of(kernel, model: Supervised, reference: Supervised):
    """(N,) values of a kernel, a chunk at a time."""
    values, _ = head.head_values(kernel, model.states, model.head, model.labels, (reference.states, reference.head))
    return values


# name → (values of a Supervised `s` and its reference `r`, the same from whole logits z, z0 and labels y)
VALUES = {
    "nll": (lambda s, r: s.token_nll, lambda z, z0, y: token_nll(z, y)),
    "kl": (lambda s, r: values_of(kl_kernel(), s, r), lambda z, z0, y: token_kl(z0, z)),
    "kl at 4": (lambda s, r: values_of(kl_kernel(4.0), s, r), lambda z, z0, y: token_kl(z0, z, 4.0)),
    "distillation": (
        lambda s, r: values_of(kl_kernel(1.0, 0.7, 0.3), s, r),
        lambda z, z0, y: 0.7 * token_kl(z0, z) + 0.3 * token_nll(z, y),
    ),
    "distillation at 2": (
        lambda s, r: values_of(kl_kernel(2.0, 0.7, 0.3), s, r),
        lambda z, z0, y: 0.7 * token_kl(z0, z, 2.0) + 0.3 * token_nll(z, y),
    ),
    "ce_u": (lambda s, r: s.token_values(ce_u_token), lambda z, z0, y: ce_u_token(z, y)),
    "undial": (
        lambda s, r: s.token_values(partial(undial_token, beta=2.0), r),
        lambda z, z0, y: undial_token(z, y, z0, 2.0),
    ),
}
ATOL = {"kl at 4": 32e-6, "distillation at 2": 8e-6}  # rounding, times T²
every_value = pytest.mark.parametrize("name", VALUES)


@pytest.fixture(
    autouse=True,
    params=[(7, 3, 2**30), (7, 3, 0), (7, 5, 4 * 50 * 20), (1000, 1000, 2**30)],
    ids=["kept", "computed again", "partly kept", "one chunk"],
)
def chunks(request, monkeypatch):
    """Positions of a chunk, of a part of it, and bytes that may be kept."""
    positions, part, kept = request.param
    monkeypatch.setattr(chunk_size, "CHUNK_NUMBERS", positions * V)
    monkeypatch.setattr(chunk_size, "PART_NUMBERS", part * V)
    monkeypatch.setattr(head, "KEPT_BYTES", kept)


def parts(bias: bool = True, dtype: torch.dtype = torch.float32, scale: float = 1.0):
    """(Supervised, its reference), whose states and head ask for gradients."""
    torch.manual_seed(0)
    labels, example = torch.randint(0, V, (N,)), torch.arange(N) // 7
    both = []
    for _ in range(2):
        states, linear = (torch.randn(N, H) * scale).to(dtype).requires_grad_(), nn.Linear(H, V, bias=bias).to(dtype)
        both.append(Supervised(states=states, labels=labels, head=linear, example=example, n_examples=5))
    return both


def loss(values: torch.Tensor) -> torch.Tensor:
    """Not linear, so that the gradient that comes to a value is known only once all are."""
    return (values * torch.linspace(-1.0, 2.0, N)).tanh().sum() + values.mean() ** 2


@every_value
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_whole_logits(name, bias):
    ours, whole = VALUES[name]
    model, reference = parts(bias)
    inputs = [model.states, *model.head.parameters()]
    values = ours(model, reference)
    expected = whole(model.logits, reference.logits, model.labels)
    torch.testing.assert_close(values, expected, rtol=1e-6, atol=ATOL.get(name, 2e-6))
    torch.testing.assert_close(model.observed_nll, token_nll(model.logits, model.labels), rtol=1e-6, atol=1e-6)
    for found, right in zip(
        torch.autograd.grad(loss(values), inputs), torch.autograd.grad(loss(expected), inputs), strict=True
    ):
        torch.testing.assert_close(found, right, rtol=1e-6, atol=ATOL.get(name, 2e-6))
    assert torch.autograd.grad(ours(model, reference).sum(), reference.states, allow_unused=True) == (None,)


@every_value
def test_a_frozen_head_gets_no_gradient_and_nothing_is_kept_for_it(name):
    model, reference = parts()
    model.head.requires_grad_(False)
    values = VALUES[name][0](model, reference)
    assert all(V not in saved.shape for saved in values.grad_fn.saved_tensors if saved is not None and saved.numel())
    expected = VALUES[name][1](model.logits, reference.logits, model.labels)
    (found,), (right,) = (torch.autograd.grad(loss(v), model.states) for v in (values, expected))
    torch.testing.assert_close(found, right, rtol=1e-6, atol=ATOL.get(name, 2e-6))


@every_value
def test_without_a_head_the_states_are_the_logits(name):
    model, reference = (p.whole() for p in parts())
    logits = model.states.detach().clone().requires_grad_()
    model = Supervised(**{**vars(model), "states": logits})
    before = logits.detach().clone()
    values, expected = VALUES[name][0](model, reference), VALUES[name][1](logits, reference.states, model.labels)
    (found,), (right,) = (torch.autograd.grad(loss(v), logits) for v in (values, expected))
    torch.testing.assert_close(values, expected, rtol=1e-6, atol=ATOL.get(name, 2e-6))
    torch.testing.assert_close(found, right, rtol=1e-6, atol=ATOL.get(name, 2e-6))
    assert torch.equal(logits, before)  # kernels write over their logits, not over these


@every_value
def test_without_gradients_the_values_are_the_same(name):
    model, reference = parts()
    values = VALUES[name][0](model, reference)
    model, reference = parts()
    with torch.no_grad():
        found = VALUES[name][0](model, reference)
    assert not found.requires_grad
    torch.testing.assert_close(found, values.detach(), rtol=1e-6, atol=ATOL.get(name, 2e-6))


@every_value
@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "bfloat16 weights"])
def test_in_bfloat16_it_is_as_near_to_float32_as_whole_logits_are(name, autocast):
    ours, whole = VALUES[name]

    def grads(chunked: bool, low: bool) -> list[torch.Tensor]:
        model, reference = parts(dtype=torch.bfloat16 if low and not autocast else torch.float32)
        with torch.autocast("cpu", torch.bfloat16, enabled=low and autocast):
            values = ours(model, reference) if chunked else whole(model.logits, reference.logits, model.labels)
            assert values.dtype == torch.float32
            inputs = [model.states, *model.head.parameters()]
            found = torch.autograd.grad(values.mean(), inputs)
        assert all(g.dtype == p.dtype for g, p in zip(found, inputs, strict=True))
        return [values.detach(), *(g.float() for g in found)]

    for found, dense, right in zip(grads(True, True), grads(False, True), grads(False, False), strict=True):
        size = right.abs().max()
        assert (found - right).abs().max() < 1.5 * (dense - right).abs().max() + 0.01 * size


@every_value
def test_on_a_card_a_kernel_sees_a_whole_chunk_whose_size_the_memory_says(name, monkeypatch):
    """Nine positions of 50 logits, of 4 · 4 bytes each, in a 32nd of the card; the same values and gradients."""
    monkeypatch.setattr(chunk_size, "TILE", 3)
    monkeypatch.setattr(chunk_size, "CARD_LEAST", 0)
    monkeypatch.setattr(head, "card_memory", lambda device: 32 * (10 * 16 * V))
    seen, plain = [], head._Chunks.values

    def values(chunks, rows, *others):
        seen.append((rows.stop - rows.start, chunks.model.part))
        return plain(chunks, rows, *others)

    monkeypatch.setattr(head._Chunks, "values", values)
    model, reference = parts()
    ours, whole = VALUES[name]
    values_, expected = ours(model, reference), whole(model.logits, reference.logits, model.labels)
    assert seen[:4] == [(9, 9), (9, 9), (9, 9), (6, 9)]
    inputs = [model.states, *model.head.parameters()]
    torch.testing.assert_close(values_, expected, rtol=1e-6, atol=ATOL.get(name, 2e-6))
    for found, right in zip(
        torch.autograd.grad(loss(values_), inputs), torch.autograd.grad(loss(expected), inputs), strict=True
    ):
        torch.testing.assert_close(found, right, rtol=1e-5, atol=5 * ATOL.get(name, 2e-6))


def test_a_divergence_needs_a_reference():
    model, _ = parts()
    with pytest.raises(ValueError, match="reference"):
        head.head_values(kl_kernel(), model.states, model.head, model.labels)


def test_values_come_with_the_nll_which_has_no_gradient():
    model, reference = parts()
    values, nll = head.head_values(
        kl_kernel(), model.states, model.head, model.labels, (reference.states, reference.head)
    )
    torch.testing.assert_close(nll, token_nll(model.logits, model.labels), rtol=1e-6, atol=1e-6)
    assert values.requires_grad and not nll.requires_grad


def test_the_divergence_from_itself_is_exactly_zero():
    model, _ = parts(scale=10.0)
    assert not model.kl(model).any()


@pytest.mark.parametrize("offset", [0.0, 300.0, -300.0])
def test_logits_far_from_zero(offset):
    """A label of probability e^-200 and one of 1; the shift that softmax does not see."""
    logits = (torch.tensor([[0.0, 200.0, 0.0], [0.0, 200.0, 0.0]]) + offset).requires_grad_()
    found = Supervised(states=logits, labels=torch.tensor([0, 1]), example=torch.arange(2), n_examples=2)
    assert found.token_nll.tolist() == [200.0, 0.0]
    (gradient,) = torch.autograd.grad(found.token_nll.sum(), logits)
    assert gradient.tolist() == [[-1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]


def test_no_position():
    model, _ = parts()
    none = Supervised(
        **{**vars(model), "states": model.states[:0], "labels": model.labels[:0], "example": model.example[:0]}
    )
    none.token_nll.sum().backward()
    assert not model.head.weight.grad.any()


# the kernel of a weighted sum, whether it asks for the reference, and the same of whole logits
SUMS = {
    name: (kernel, name != "nll", VALUES[name][1])
    for name, kernel in {
        "nll": nll_kernel,
        "kl": kl_kernel(),
        "kl at 4": kl_kernel(4.0),
        "distillation": kl_kernel(1.0, 0.7, 0.3),
        "distillation at 2": kl_kernel(2.0, 0.7, 0.3),
    }.items()
}
every_sum = pytest.mark.parametrize("name", SUMS)
WEIGHTS = torch.linspace(-1.0, 2.0, N)


def weighted_sum(name: str, model: Supervised, reference: Supervised):
    kernel, refers, _ = SUMS[name]
    return head.head_sum(
        kernel, model.states, model.head, model.labels, WEIGHTS, (reference.states, reference.head) if refers else None
    )


def is_summed(value: torch.Tensor) -> bool:
    """Whether the head's gradient was summed up in the forward pass."""
    return "HeadSum" in value.grad_fn.name()


@every_sum
@pytest.mark.parametrize("bias", [True, False])
def test_a_sum_and_its_gradients_are_those_of_whole_logits(name, bias):
    model, reference = parts(bias)
    inputs = [model.states, *model.head.parameters()]
    value, nll = weighted_sum(name, model, reference)
    expected = (WEIGHTS * SUMS[name][2](model.logits, reference.logits, model.labels)).sum()
    assert is_summed(value) and value.shape == ()
    torch.testing.assert_close(nll, token_nll(model.logits, model.labels), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=10 * ATOL.get(name, 2e-6))
    for found, right in zip(
        torch.autograd.grad(3 * value.tanh(), inputs), torch.autograd.grad(3 * expected.tanh(), inputs), strict=True
    ):
        torch.testing.assert_close(found, right, rtol=1e-5, atol=5 * ATOL.get(name, 2e-6))


def test_a_sum_keeps_nothing_of_the_size_of_the_logits():
    value, _ = weighted_sum("nll", *parts())
    of_states = [saved.shape for saved in value.grad_fn.saved_tensors]
    assert of_states == [(N,), (N, H)] and [t.shape for t in value.grad_fn.of_head] == [(V, H), (V,)]


def test_a_sum_goes_backward_once():
    """What it keeps is scaled in place, which a second pass would scale again."""
    model, reference = parts()
    value, _ = weighted_sum("nll", model, reference)
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="compute it again"):
        value.backward()


@pytest.mark.parametrize(
    ("of_head", "width", "summed"), [("all", 8, True), ("bias", 8, True), ("none", 8, False), ("all", 40, False)]
)
def test_a_sum_keeps_what_is_less(of_head, width, summed):
    """The head's gradient (V, H), or at few positions the logits' (N, V), or for a frozen head neither."""
    torch.manual_seed(0)
    linear, labels = nn.Linear(width, V), torch.randint(0, V, (N,))
    linear.weight.requires_grad_(of_head == "all")
    linear.bias.requires_grad_(of_head != "none")
    states = torch.randn(N, width, requires_grad=True)
    value, _ = head.head_sum(nll_kernel, states, linear, labels, WEIGHTS)
    assert is_summed(value) == summed
    inputs = [states, *(p for p in linear.parameters() if p.requires_grad)]
    expected = (WEIGHTS * token_nll(linear(states), labels)).sum()
    for found, right in zip(torch.autograd.grad(value, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-5)


@every_sum
@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "bfloat16 weights"])
def test_a_sum_in_bfloat16_is_as_near_to_float32_as_whole_logits_are(name, autocast):
    def grads(chunked: bool, low: bool) -> list[torch.Tensor]:
        model, reference = parts(dtype=torch.bfloat16 if low and not autocast else torch.float32)
        with torch.autocast("cpu", torch.bfloat16, enabled=low and autocast):
            if chunked:
                value, _ = weighted_sum(name, model, reference)
                assert is_summed(value) and value.dtype == torch.float32
            else:
                value = (WEIGHTS * SUMS[name][2](model.logits, reference.logits, model.labels)).sum()
            inputs = [model.states, *model.head.parameters()]
            found = torch.autograd.grad(value / N, inputs)
        assert all(g.dtype == p.dtype for g, p in zip(found, inputs, strict=True))
        return [g.float() for g in found]

    for found, dense, right in zip(grads(True, True), grads(False, True), grads(False, False), strict=True):
        assert (found - right).abs().max() < 1.5 * (dense - right).abs().max() + 0.01 * right.abs().max()
