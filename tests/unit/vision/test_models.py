"""Models: what they take and give, how they are saved, and the words for what cannot be."""

import pytest
import torch

from llm_unlearn.errors import InputError
from llm_unlearn.vision import torchvision_guard
from llm_unlearn.vision.classifier_blocks import block_list, last_blocks, parts, reinitialise
from llm_unlearn.vision.classifiers import ImageClassifierConfig, load_classifier, make_classifier

pytestmark = pytest.mark.unit

needs_torchvision = pytest.mark.skipif(torchvision_guard.try_torchvision() is None, reason="torchvision is not there")
NAMES = ["cifar_resnet18", "mobilenet_v3_small", "densenet121", "squeezenet1_1", "vit_b_16", "googlenet"]


def config(architecture: str = "small_cnn", **fields) -> ImageClassifierConfig:
    given = {"num_labels": 5, "image_size": [32, 32], "channels": 3, **fields}
    return ImageClassifierConfig(architecture, **given)


@pytest.mark.parametrize("name", ["small_cnn", "linear", *(pytest.param(n, marks=needs_torchvision) for n in NAMES)])
def test_a_classifier_gives_one_row_of_logits_per_image_and_comes_back_from_disk_as_it_was(name, tmp_path):
    size = 64 if name in ("googlenet", "squeezenet1_1") else 32
    model = make_classifier(config(name, image_size=[size, size]), 0)
    pixels = torch.rand(2, 3, size, size)
    assert model.train()(pixels).shape == (2, 5)
    expected = model.eval()(pixels)
    model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.bin"))
    torch.testing.assert_close(load_classifier(tmp_path).eval()(pixels), expected, rtol=0, atol=1e-5)


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    one, two, other = (make_classifier(config(), seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    first = [next(m.network.parameters()) for m in (one, two, other)]
    assert torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])


def test_pixels_are_normalised_by_mean_and_std():
    plain, shifted = (
        make_classifier(config(mean=[0.0] * 3, std=[1.0] * 3), 0),
        make_classifier(config(mean=[0.2, 0.3, 0.4], std=[0.5, 0.25, 2.0]), 0),
    )
    x = torch.rand(2, 3, 32, 32)
    by_hand = torch.stack([(x[:, 0] - 0.2) / 0.5, (x[:, 1] - 0.3) / 0.25, (x[:, 2] - 0.4) / 2.0], 1)
    torch.testing.assert_close(shifted.eval()(x), plain.eval()(by_hand), rtol=0, atol=1e-5)


@needs_torchvision
def test_the_cifar_stem_keeps_the_size_of_the_image():
    network = make_classifier(config("cifar_resnet18"), 0).network
    assert network.conv1.weight.shape == (64, 3, 3, 3) and network.conv1.stride == (1, 1)
    assert network.maxpool(network.conv1(torch.rand(1, 3, 32, 32))).shape[-2:] == (32, 32)


def test_an_odd_size_fits_the_small_cnn():
    model = make_classifier(config(image_size=[7, 13], depth=3), 0)
    assert model(torch.rand(2, 3, 7, 13)).shape == (2, 5)


@needs_torchvision
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architecture": "resnet19"}, "none of small_cnn, linear, cifar_resnet18, and no classifier of torchvision"),
        ({"architecture": "mobilenet_v3_small", "channels": 1}, "takes 3 channels, the images have 1"),
    ],
)
def test_what_cannot_be_built_is_refused_with_its_reason(fields, message):
    with pytest.raises(InputError, match=message):
        make_classifier(config(**fields), 0)


@needs_torchvision
@pytest.mark.parametrize(("name", "size"), [("alexnet", 16), ("vit_b_16", 20)])
def test_images_of_a_size_that_does_not_fit_are_refused(name, size):
    with pytest.raises(InputError, match=f"'{name}' cannot take images of {size} × {size} pixels"):
        make_classifier(config(name, image_size=[size, size]), 0)


def test_a_language_model_is_no_classifier(make_tiny, tmp_path):
    make_tiny("gpt2").save_pretrained(tmp_path)
    with pytest.raises(InputError, match="'gpt2'.*not an image classifier"):
        load_classifier(tmp_path)


def test_a_folder_without_a_model_is_refused_by_its_name(tmp_path):
    with pytest.raises(InputError, match="no-such-folder"):
        load_classifier(tmp_path / "no-such-folder")


# ---- blocks


@needs_torchvision
@pytest.mark.parametrize(
    ("name", "blocks", "kind"),
    [("cifar_resnet18", 9, "BasicBlock"), ("vit_b_16", 13, "EncoderBlock"), ("densenet121", 8, "_DenseBlock")],
)
def test_the_blocks_of_torchvision_s_networks(name, blocks, kind):
    network = make_classifier(config(name), 0).network
    assert len(block_list(network)) == blocks
    assert type(block_list(network)[-1]).__name__ == kind


def test_the_last_blocks_take_the_head_with_them(make_small):
    network = make_small().network
    assert last_blocks(network, 1) == [network.blocks[-1], network.head]
    assert last_blocks(network, 3) == parts(network)
    with pytest.raises(InputError, match=r"^k: .*\b1 and .*\b3 blocks, is 4$"):
        last_blocks(network, 4)


def test_of_a_linear_classifier_the_head_is_the_one_block():
    network = make_classifier(config("linear"), 0).network
    assert block_list(network) == last_blocks(network, 1) == [network[1]]


@needs_torchvision
def test_a_norm_that_stands_behind_the_blocks_goes_with_them():
    network = make_classifier(config("vit_b_16"), 0).network
    assert [type(part).__name__ for part in last_blocks(network, 1)] == ["EncoderBlock", "LayerNorm", "Linear"]


def test_drawing_blocks_anew_is_building_them_from_the_seed_and_leaves_the_rest(make_small):
    model, fresh = make_small(0), make_small(7, seen=False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    reinitialise(model, last_blocks(model.network, 1), 7)
    for name, value in model.state_dict().items():
        redrawn = name.startswith(("network.blocks.2", "network.head"))
        expected = fresh.state_dict()[name] if redrawn else before[name]
        assert torch.equal(value, expected), name
    assert int(model.network.blocks[2][2].num_batches_tracked) == 0  # its statistics too
