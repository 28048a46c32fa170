"""One file per unlearning method. METHODS is the one list of them."""

from llm_unlearn.trainers.grad_diff import GradDiffConfig, GradDiffTrainer
from llm_unlearn.trainers.gradient_ascent import GradientAscentConfig, GradientAscentTrainer
from llm_unlearn.trainers.gradient_descent import GradientDescentConfig, GradientDescentTrainer
from llm_unlearn.trainers.kl import KLConfig, KLTrainer

METHODS = {
    "gradient_descent": (GradientDescentConfig, GradientDescentTrainer),
    "gradient_ascent": (GradientAscentConfig, GradientAscentTrainer),
    "grad_diff": (GradDiffConfig, GradDiffTrainer),
    "kl": (KLConfig, KLTrainer),
}
