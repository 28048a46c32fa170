"""H1 and H2 on convex models: linear and logistic, on the pixels of scikit-learn's digits. Prints a table, in seconds.

python scripts/convex_hypotheses.py
"""

import numpy as np
from sklearn.datasets import load_digits

from llm_unlearn.audit.analysis.convex import ConvexShift, Loss, convex_shift

SEEDS, SHARE, EPSILON = range(8), 0.025, 1.0  # share of the rows that are poisoned; ε in deviations of a pixel


def measured(poison: str, loss: Loss, seed: int) -> ConvexShift:
    """One draw of the poison, "noise" on the features or wrong "labels"."""
    digits, generator = load_digits(), np.random.default_rng(seed)
    varied = digits.data[:, digits.data.std(0) > 1]  # where pixels never vary, noise alone would decide on a weight
    pixels = (varied - varied.mean(0)) / varied.std(0)
    labels, chosen = digits.target.copy(), generator.permutation(len(pixels))[: round(SHARE * len(pixels))]
    if poison == "noise":
        pixels[chosen] += EPSILON * generator.standard_normal(pixels[chosen].shape)
    else:
        labels[chosen] = (labels[chosen] + generator.integers(1, 10, len(chosen))) % 10
    features = np.column_stack([pixels, np.ones(len(pixels))])
    return convex_shift(features, labels, np.isin(np.arange(len(pixels)), chosen), loss, seed=seed)


def main() -> None:
    losses: tuple[Loss, Loss] = ("linear", "logistic")
    print("| poison | model | ‖θ(S) − θ(S∖U)‖₁, poison | random rows | ratio | cos(−∇ℓ clean, move) | of a batch |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for poison in ("noise", "labels"):
        for loss in losses:
            found = [measured(poison, loss, seed) for seed in SEEDS]
            columns = [
                ("{:.2f}", [f.poison_shift for f in found]),
                ("{:.2f}", [f.random_shift for f in found]),
                ("{:.2f}", [f.poison_shift / f.random_shift for f in found]),
                ("{:.3f}", [f.cosine for f in found]),
                ("{:.3f}", [f.batch_cosine for f in found]),
            ]
            cells = [f"{form.format(np.mean(x))} ± {form.format(np.std(x, ddof=1))}" for form, x in columns]
            print(f"| {poison} | {loss} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
