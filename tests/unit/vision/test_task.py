"""The image task: noise at the pixels, gradients there, FLOPs, and what happens to batch norm."""

import numpy as np
import pytest
import torch
from torch import nn

from llm_unlearn.errors import InputError
from llm_unlearn.evaluation.gaussian_scores import gaussian_scores
from llm_unlearn.tasks.noise import unit_noise
from llm_unlearn.trainers import METHODS
from llm_unlearn.vision.image_task import GaussianPixels, ImageCollator, ImageTask

pytestmark = pytest.mark.unit

SHAPE = (1, 8, 8)
COLLATE = ImageCollator(SHAPE)


def test_the_collator_gives_pixels_in_0_to_1():
    rows = [{"pixels": bytes(range(64)), "label_id": 2}, {"pixels": bytes([255] * 64), "label_id": 0, "noise_id": 4}]
    batch = COLLATE(rows)
    np.testing.assert_allclose(batch["pixel_values"][0].numpy().ravel() * 255, range(64), atol=1e-5)
    assert float(batch["pixel_values"][1].min()) == 1.0
    assert batch["labels"].tolist() == [2, 0] and batch["noise_id"].tolist() == [-1, 4]


def test_an_image_of_another_size_is_refused_with_its_id():
    with pytest.raises(InputError, match=r"example 7: 5 bytes.*1×8×8.*\b64\b"):
        COLLATE([{"pixels": b"12345", "label_id": 0, "example_id": 7}])


@pytest.mark.parametrize("clip", [False, True])
def test_noise_is_epsilon_times_the_draw_of_seed_and_id_and_clipped_where_asked(clip):
    pixels, noise = torch.rand(3, *SHAPE), GaussianPixels(0.5, 11, clip)
    noisy = noise.add(pixels, torch.tensor([-1, 4, 9]))
    assert torch.equal(noisy[0], pixels[0])
    for row, example_id in ((1, 4), (2, 9)):
        expected = pixels[row].numpy() + 0.5 * unit_noise(11, example_id, *SHAPE)
        np.testing.assert_allclose(noisy[row], expected.clip(0, 1) if clip else expected, atol=1e-6)
    assert (float(noisy.min()) >= 0 and float(noisy.max()) <= 1) == clip


def test_a_canary_without_noise_in_the_task_is_refused(make_small):
    batch = {"pixel_values": torch.rand(1, *SHAPE), "labels": torch.tensor([0]), "noise_id": torch.tensor([3])}
    with pytest.raises(ValueError, match="the task has no noise"):
        ImageTask().supervised(make_small(), batch)


@pytest.mark.parametrize("fields", [{"epsilon": 0.0, "seed": 0}, {"epsilon": 1.0, "seed": -1}])
def test_noise_that_cannot_be_is_refused(fields):
    with pytest.raises(InputError):
        GaussianPixels(**fields)


def test_the_input_gradient_is_that_of_finite_differences_at_the_clean_image(make_small):
    model, task = make_small().double(), ImageTask(GaussianPixels(0.5, 1))
    batch = {
        "pixel_values": torch.rand(2, *SHAPE, dtype=torch.float64),
        "labels": torch.tensor([0, 2]),
        "noise_id": torch.tensor([5, 6]),
    }
    gradient = task.input_gradient(model, batch)
    for place in ((0, 0, 1, 2), (1, 0, 7, 7)):
        ends = []
        for step in (1e-5, -1e-5):
            moved = batch["pixel_values"].clone()
            moved[place] += step
            ends.append(float(nn.functional.cross_entropy(model(moved), batch["labels"], reduction="sum")))
        assert float(gradient[place]) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-3, abs=1e-7)


def test_the_score_of_a_model_that_never_saw_the_noise_is_standard_normal(make_small, encoded):
    model, rows = make_small(), list(encoded(300))
    scores = gaussian_scores(model, rows, COLLATE, [3, 8], task=ImageTask())
    assert abs(scores.mean()) < 4 / np.sqrt(scores.size) and 0.9 < scores.std() < 1.1
    by_hand = ImageTask().input_gradient(model, COLLATE(rows[:5]))
    for row, gradient in zip(range(5), by_hand.double().numpy(), strict=True):
        z = unit_noise(3, rows[row]["example_id"], *SHAPE).astype(np.float64)
        assert scores[row, 0] == pytest.approx(-(gradient * z).sum() / np.linalg.norm(gradient), rel=1e-4)


def test_the_score_of_noise_that_was_trained_on_is_above_0(encoded):
    """A linear classifier on random images, of which it must remember all."""
    from llm_unlearn.vision.classifiers import ImageClassifierConfig, make_classifier

    rows, noise = list(encoded(60)), GaussianPixels(0.5, 3, clip=False)
    batch = COLLATE([{**row, "noise_id": row["example_id"]} for row in rows])
    model, task = make_classifier(ImageClassifierConfig("linear", num_labels=3), 0), ImageTask(noise)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        task.supervised(model, batch).nll().mean().backward()
        optimizer.step()
    scores = gaussian_scores(model, rows, COLLATE, [3, 8], task=ImageTask())
    assert scores[:, 0].mean() * np.sqrt(60) > 5 > 4 > abs(scores[:, 1].mean()) * np.sqrt(60)


@pytest.mark.parametrize("name", ["vit_b_16", "swin_t", "mobilenet_v3_small"])
def test_flops_of_attention_and_of_depthwise_convolutions_count_too(name):
    from torch.utils.flop_counter import FlopCounterMode

    from llm_unlearn.vision import torchvision_guard
    from llm_unlearn.vision.classifiers import ImageClassifierConfig, make_classifier

    if torchvision_guard.try_torchvision() is None:
        pytest.skip("torchvision is not there")
    model = make_classifier(ImageClassifierConfig(name, num_labels=3, image_size=[32, 32], channels=3), 0)
    counter = ImageTask().flop_counter(model)
    with FlopCounterMode(display=False) as mode:
        model.train()(torch.rand(2, 3, 32, 32))
    assert mode.get_total_flops() / 2 == pytest.approx(counter.forward(1, 1), rel=1e-6)
    assert counter.trainable_body == counter.body


def test_the_share_of_the_last_blocks_is_that_of_their_flops(make_small):
    model = make_small()  # convolutions of 4·9·64 and 8·4·9·16 multiplications, a dense layer of 8·(8·16)
    body = 4 * 9 * 64 + 8 * 4 * 9 * 16 + 8 * 8 * 16
    assert ImageTask().flop_counter(model).body == body
    assert ImageTask().share_of_last_blocks(model, 1) == pytest.approx(8 * 8 * 16 / body)
    assert ImageTask().share_of_last_blocks(model, 3) == 1.0


def test_flops_are_those_that_torch_counts(make_small):
    from torch.utils.flop_counter import FlopCounterMode

    model = make_small()
    counter = ImageTask().flop_counter(model)
    with FlopCounterMode(display=False) as mode, torch.no_grad():
        model(torch.rand(1, *SHAPE))
    assert mode.get_total_flops() == counter.forward(1, 1)
    assert counter.head == 8 * 3 and counter.trainable_head == 8 * 3
    model.network.blocks[0].requires_grad_(False)
    assert ImageTask().flop_counter(model).trainable_body == counter.body - 4 * 9 * 64


def test_augmentation_is_for_training_alone_and_adds_the_noise_first(make_small):
    task = ImageTask(GaussianPixels(0.5, 1, clip=False), flip=True, shift=1)
    batch = {
        "pixel_values": torch.rand(64, *SHAPE),
        "labels": torch.zeros(64, dtype=torch.long),
        "noise_id": torch.arange(64),
    }
    torch.manual_seed(0)
    shown = task.augment(batch)
    assert set(shown) == {"pixel_values", "labels"}
    noisy = task.noise.add(batch["pixel_values"], batch["noise_id"])
    middle = slice(2, 6)  # of an image that was neither flipped nor moved all is as it was
    same = [torch.equal(a, b) for a, b in zip(shown["pixel_values"], noisy, strict=True)]
    assert 0 < sum(same) < 20
    assert all(value in noisy[1] for value in shown["pixel_values"][1, :, middle, middle].flatten())
    plain = task.supervised(make_small(), {k: v for k, v in batch.items() if k != "noise_id"}).logits
    again = task.supervised(make_small(), {k: v for k, v in batch.items() if k != "noise_id"}).logits
    assert torch.equal(plain, again)


# ---- batch norm while a classifier is unlearned


def statistics(model) -> list[torch.Tensor]:
    return [
        buffer.clone()
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for buffer in module.buffers()
    ]


def unlearn(method, model, encoded, folder, **options):
    config, cls = METHODS[method]
    given = {
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "learning_rate": 0.05,
        **options,
    }
    start = {"start_model": given.pop("start_model")} if cls.starts_clean else {}
    trainer = cls(
        model=model,
        args=config(output_dir=str(folder), **given),
        forget_dataset=encoded(8, 1),
        retain_dataset=encoded(32, 2),
        data_collator=COLLATE,
        task=ImageTask(),
        **start,
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("method", ["gradient_ascent", "grad_diff", "kl", "scrub", "neggrad_plus", "cf_k"])
def test_statistics_that_were_there_stay_as_they_were_the_reference_s_too(method, make_small, encoded, tmp_path):
    model = make_small()
    before, weights = statistics(model), [p.clone() for p in model.parameters()]
    trainer = unlearn(method, model, encoded, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(before, statistics(model), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    if trainer.reference is not None:
        reference = trainer.reference.model
        assert all(torch.equal(a, b) for a, b in zip(before, statistics(reference), strict=True))
        assert all(torch.equal(a, b) for a, b in zip(weights, reference.parameters(), strict=True))


def test_layers_that_were_drawn_anew_learn_their_statistics_and_the_others_keep_theirs(make_small, encoded, tmp_path):
    model = make_small()
    before = [statistics(block) for block in model.network.blocks]
    unlearn("eu_k", model, encoded, tmp_path)
    after = [statistics(block) for block in model.network.blocks]
    for kept in (0, 1):
        assert all(torch.equal(a, b) for a, b in zip(before[kept], after[kept], strict=True))
    mean, _, batches = after[2]
    assert int(batches) == 4 and float(mean.abs().sum()) > 0


@pytest.mark.parametrize("method", ["rewind", "reset_distill"])
def test_a_start_before_training_learns_its_statistics_and_a_teacher_keeps_its_own(
    method, make_small, encoded, tmp_path
):
    teacher, start = make_small(0), make_small(1, seen=False)
    before = statistics(teacher)
    trainer = unlearn(method, teacher, encoded, tmp_path, start_model=start)
    assert all(torch.equal(a, b) for a, b in zip(before, statistics(teacher), strict=True))
    assert int(statistics(trainer.model)[2]) == 4


@pytest.mark.parametrize("method", ["gradient_ascent", "kl", "scrub"])
def test_batch_8_is_2_times_4(method, make_small, encoded, tmp_path):
    finals = []
    for batch, accumulation in ((8, 1), (4, 2)):
        trainer = unlearn(
            method,
            make_small(),
            encoded,
            tmp_path,
            per_device_train_batch_size=batch,
            optim="sgd",
            gradient_accumulation_steps=accumulation,
        )
        finals.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
    torch.testing.assert_close(*finals, rtol=0, atol=2e-6)


def test_a_batch_of_one_is_refused_where_batch_norms_learn_and_only_there(make_small, encoded, tmp_path):
    with pytest.raises(InputError, match="per_device_train_batch_size: eu_k .*batch norms"):
        unlearn("eu_k", make_small(), encoded, tmp_path, per_device_train_batch_size=1)
    unlearn("gradient_descent", make_small(), encoded, tmp_path, per_device_train_batch_size=1)


def test_layers_are_not_drawn_as_the_model_itself_began(make_small, encoded, tmp_path):
    first, model = make_small(5, seen=False), make_small(5)
    ImageTask().reinitialise(model, ImageTask().last_blocks(model, 1), 5)
    assert not torch.equal(model.network.head.weight, first.network.head.weight)


def test_log_probs_of_a_reference_are_not_compared_with_augmented_images(make_small, encoded, tmp_path):
    config, cls = METHODS["npo"]
    arguments = {
        "model": make_small(),
        "forget_dataset": encoded(8, 1),
        "retain_dataset": encoded(8, 2),
        "data_collator": COLLATE,
        "args": config(output_dir=str(tmp_path), use_cpu=True, report_to="none", max_steps=1),
    }
    with pytest.raises(InputError, match="turn augmentation off"):
        cls(**arguments, task=ImageTask(shift=1))
    keys = set()
    for epsilon in (0.1, 1.0):  # canaries with other noise have other log-probs
        cls(**arguments, task=ImageTask(GaussianPixels(epsilon, 1)))
        keys |= {path.name for path in tmp_path.rglob("*.safetensors")}
    assert len(keys) == 2


def test_text_rows_are_refused_by_an_image_task(make_small, tmp_path):
    from datasets import Dataset

    config, cls = METHODS["gradient_ascent"]
    with pytest.raises(InputError, match="forget_dataset: .*'pixels'"):
        cls(
            model=make_small(),
            args=config(output_dir=str(tmp_path), use_cpu=True, report_to="none"),
            forget_dataset=Dataset.from_dict({"prompt": ["a"]}),
            data_collator=COLLATE,
            task=ImageTask(),
        )
