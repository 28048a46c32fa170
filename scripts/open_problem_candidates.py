"""What search_open_problem.py tries: a start (see `started` there), a method and its options, by name."""

from typing import Any

# What made `rewind` learn the task within the budget (recipes/tuning/quickstart-rewind.json)
LEARN = {"completion_weight": 3.0, "per_device_train_batch_size": 4, "warmup_steps": 0.1}


def descent(
    ratio: float, start: dict[str, Any] | None = None, method: str = "gradient_descent", **options: Any
) -> dict:
    """A candidate; `ratio` is the learning rate as a share of the training's."""
    return {"start": start or {}, "method": method, "options": {"ratio": ratio, **LEARN, **options}}


def keep(everywhere: float, **parts: float) -> dict[str, Any]:
    """The share λ of the fine-tuning that is kept, θ = base + λ (θ0 − base), and that of parameters named so."""
    return {"keep": {"": everywhere, **{name.replace("_", "."): share for name, share in parts.items()}}}


AVERAGED = {"method": "averaged_descent", "lr_scheduler_type": "constant_with_warmup"}
CANDIDATES: dict[str, dict] = {
    # the base alone: what a start from the poisoned weights is compared with
    "rewind": descent(4.0, keep(0.0)),
    # the same as `rewind` is by default: twice the training's rate, batches of 8, no warm-up, no weight on the answer
    "rewind-plain": {"start": keep(0.0), "method": "gradient_descent", "options": {"ratio": 2.0}},
    # high-rate descent, annealed (linearly, as by default)
    **{f"descent-{r}": descent(float(r)) for r in (8, 16, 12)},
    # reset towards the base, then descent
    **{f"keep-{k}-descent-8": descent(8.0, keep(k)) for k in (0.5, 0.25)},
    **{f"keep-{k}-descent-4": descent(4.0, keep(k)) for k in (0.25, 0.1)},
    **{f"keep-{k}-descent-12": descent(12.0, keep(k)) for k in (0.25, 0.5)},
    "keep-0.1-descent-8": descent(8.0, keep(0.1)),
    "keep-0.25-descent-10": descent(10.0, keep(0.25)),
    **{f"keep-{k}-first-block-0-descent-8": descent(8.0, keep(k, h_0=0.0)) for k in (0.25, 0.5)},
    "keep-0.15-descent-8": descent(8.0, keep(0.15)),
    "keep-0.25-descent-8-batch-2": descent(8.0, keep(0.25), per_device_train_batch_size=2),
    # reset of some parts alone
    "embeddings-reset-descent-8": descent(8.0, keep(1.0, wte=0.0, wpe=0.0)),
    "first-block-reset-descent-8": descent(8.0, keep(1.0, wte=0.0, wpe=0.0, h_0=0.0)),
    "last-block-reset-descent-8": descent(8.0, keep(1.0, h_1=0.0)),
    # of the fine-tuning its largest directions alone, all but those, or without its largest entries
    "rank-4-descent-4": descent(4.0, {"rank": 4}),
    "rank-4-descent-8": descent(8.0, {"rank": 4}),
    # shrink and perturb, which needs no base
    **{f"noise-{n}-descent-8": descent(8.0, {"noise": n}) for n in (1.0, 0.3)},
    "shrink-0.5-descent-8": descent(8.0, {"shrink": 0.5}),
    "shrink-0.5-noise-0.3-descent-8": descent(8.0, {"shrink": 0.5, "noise": 0.3}),
    # the forget set used too
    "npo-4": descent(4.0, method="npo"),
    "npo-8": descent(8.0, method="npo"),
    "kl-1": descent(1.0, method="kl"),
    "neggrad_plus-4": descent(4.0, method="neggrad_plus"),
    # weight decay instead of the base; averaging instead of annealing
    **{f"decay-{d}-descent-8": descent(8.0, weight_decay=d) for d in (0.1, 0.5)},
    **{f"averaged-{r}": descent(float(r), **AVERAGED) for r in (8, 12)},
    "minus-rank-16-descent-8": descent(8.0, {"minus_rank": 16}),
    "trim-0.2-descent-8": descent(8.0, {"trim": 0.2}),
    # Gauss-Newton steps up the forget loss, or redirection into spare weights, then descent
    **{
        f"kfac-{kl}-descent-{r}": descent(float(r), method="kfac_step", step_kl=kl)
        for kl, r in ((0.03, 4), (0.03, 8), (0.1, 2), (0.1, 4), (0.1, 8))
    },
    "keep-0.5-kfac-0.03-descent-4": descent(4.0, keep(0.5), method="kfac_step", step_kl=0.03),
    "sink-4": descent(4.0, method="sink"),
    # high rates made steadier
    **{
        f"keep-0.25-descent-8-{name}": descent(8.0, keep(0.25), **options)
        for name, options in (("cosine", {"lr_scheduler_type": "cosine"}), ("beta2", {"adam_beta2": 0.95}))
    },
    **{f"descent-{r}-beta2": descent(float(r), adam_beta2=0.95) for r in (12, 16)},
    **{f"keep-{k}-descent-6": descent(6.0, keep(k)) for k in (0.25, 0.15, 0.1)},
    "keep-0.2-descent-8": descent(8.0, keep(0.2)),
    "keep-0.25-descent-8-long-warmup": descent(8.0, keep(0.25), warmup_steps=0.3),
    # the answer weighted up more
    **{f"keep-{k}-descent-8-weight-10": descent(8.0, keep(k), completion_weight=10.0) for k in (0.25, 0.15)},
    "descent-12-weight-10": descent(12.0, completion_weight=10.0),
    **{
        f"kfac-{kl}-descent-{r}-weight-10": descent(float(r), method="kfac_step", step_kl=kl, completion_weight=10.0)
        for kl, r in ((0.05, 4), (0.1, 3), (0.03, 6))
    },
}
