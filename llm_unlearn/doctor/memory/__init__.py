"""How much memory a training or unlearning step takes, known without weights, data or a GPU.

A step is run on tensors that have shapes and no contents (torch's FakeTensor) by the code that runs it in earnest: the
trainer, its task and collator, the model's own forward and backward. subject.py says what is trained, dataless.py makes
it, step.py runs it, ledger.py adds up what is held at each moment, and estimate.py adds what a step's code does not
hold itself: the optimizer's state (optimizer.py), what an engine gathers, what lies on another device.
"""
