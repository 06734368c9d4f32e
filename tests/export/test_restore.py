"""What is published becomes a checkpoint again, which answers as the graphs do and can be trained."""

import shutil
from pathlib import Path

import onnx
import pytest
import torch
from onnx import numpy_helper
from PIL import Image
from torch import nn

from export.build import export
from export.restore import main, restore
from referent.core.bundle import load_bundle
from referent.core.contract import part_name
from referent.kinds.head import BOX_HEAD
from referent.mini.renewal import measure_norms
from referent.modeling.checkpoint import load_checkpoint, load_checkpoint_spec
from referent.modeling.grounder import load_grounder
from tests.support.releases import publish_tiny
from tests.support.tiny import MODEL_REPOSITORY

PICTURE = Path(__file__).parents[1] / "samples" / "scene-1.jpg"


@pytest.fixture(scope="module")
def restored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("restored") / "mini"
    restore(MODEL_REPOSITORY, "mini", out)
    return out


def test_a_restored_model_says_what_it_is_of_and_finds_things(restored: Path) -> None:
    bundle, digest = load_bundle(MODEL_REPOSITORY, "mini")
    spec = load_checkpoint_spec(restored)
    assert (spec.kind, spec.training["restored"]) == (bundle.kind, digest)
    assert spec.present_threshold == bundle.present_threshold
    with Image.open(PICTURE) as image:
        truck, submarine = load_grounder(restored, device="cpu").ground(image, ["the truck", "the submarine"])
    assert truck.present
    assert not submarine.present


def test_a_model_that_finds_every_referent_is_restored_too(tmp_path: Path) -> None:
    spec = restore(MODEL_REPOSITORY, "mini-all", tmp_path / "all")
    assert (spec.kind, spec.referent_threshold) == (
        "referents",
        load_bundle(MODEL_REPOSITORY, "mini-all")[0].referent_threshold,
    )
    with Image.open(PICTURE.with_name("scene-8.jpg")) as image:
        cats, rockets = load_grounder(tmp_path / "all", device="cpu").ground(image, ["the cats", "the rockets"])
    assert len(cats.referents) == 4
    assert not rockets.referents


def test_what_is_published_in_half_is_restored_in_half(restored: Path, tmp_path: Path) -> None:
    export(restored, "half", tmp_path / "repository", weights="fp16", quick_parity=True)
    bundle, _ = load_bundle(tmp_path / "repository", "half")
    assert (bundle.dtype, bundle.weights) == ("fp32", "fp16")
    assert bundle.size_bytes < 16e6
    restore(tmp_path / "repository", "half", tmp_path / "again")
    before, after = (dict(load_checkpoint(folder)[0].named_parameters()) for folder in (restored, tmp_path / "again"))
    assert before.keys() == after.keys()
    for name, weight in before.items():  # mini itself is published in half
        assert torch.equal(after[name], weight), name


def test_a_model_with_batch_norms_computes_in_half_on_a_gpu(restored: Path, tmp_path: Path) -> None:
    """Their statistics are buffers, which are loaded as views of the checkpoint's file."""
    export(restored, "half", tmp_path / "repository", dtype="fp16", quick_parity=True)
    assert load_bundle(tmp_path / "repository", "half")[0].dtype == "fp16"


def test_an_embedding_that_shares_its_weight_with_a_product_is_not_rounded(restored: Path, tmp_path: Path) -> None:
    export(restored, "four", tmp_path / "repository", weights="int4", quick_parity=True)
    assert load_bundle(tmp_path / "repository", "four")[0].weights == "int4"


def test_a_restored_model_learns(restored: Path) -> None:
    model, _ = load_checkpoint(restored, trainable=True)
    images = torch.randint(0, 256, (2, 288, 288, 3), dtype=torch.uint8)
    model.encode_image(images).square().mean().backward()
    gradients = [parameter.grad for parameter in model.base.model.vision_tower.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients[:-2])


def test_measured_norms_normalise_and_change_no_answer(restored: Path) -> None:
    model, _ = load_checkpoint(restored)
    with Image.open(PICTURE) as image:
        pixels = torch.frombuffer(bytearray(image.convert("RGB").resize((288, 288)).tobytes()), dtype=torch.uint8)
    images = pixels.view(1, 288, 288, 3)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:  # as the exporter folds it
        norm.bias.data -= norm.running_mean * norm.weight.data / (norm.running_var + norm.eps).sqrt()
        norm.weight.data /= (norm.running_var + norm.eps).sqrt()
        norm.running_mean.zero_()
        norm.running_var.fill_(1 - norm.eps)
    before = model.encode_image(images)
    measure_norms(model, [images])
    torch.testing.assert_close(model.encode_image(images), before, rtol=1e-4, atol=1e-4)
    assert all((norm.running_var - 1).abs().max() > 0.01 for norm in norms)
    model.train()  # statistics of this very batch
    torch.testing.assert_close(model.encode_image(images), before, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("weight", ["score", "convolution"])
def test_a_graph_that_does_not_fit_is_refused(weight: str, tmp_path: Path) -> None:
    shutil.copytree(MODEL_REPOSITORY, tmp_path / "repository")
    step = part_name("mini", BOX_HEAD) if weight == "score" else "mini_vision_encoder"
    file = tmp_path / "repository" / step / load_bundle(MODEL_REPOSITORY, "mini")[0].version / "model.onnx"
    model = onnx.load(file)
    if weight == "score":  # a scale behind the product, which is no layer's
        [output] = [output.name for output in model.graph.output if output.name == "scores"]
        sigmoid = next(node for node in model.graph.node if output in node.output)
        model.graph.initializer.append(numpy_helper.from_array(torch.tensor(2.0).numpy(), "twice"))
        model.graph.node.insert(len(model.graph.node) - 1, onnx.helper.make_node("Mul", ["raw", "twice"], [output]))
        sigmoid.output[0] = "raw"
        model.graph.node.sort(key=lambda node: output in node.output)
    else:
        kernel = next(each for each in model.graph.initializer if "patch_embedding.layers.3.weight" in each.name)
        kernel.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(kernel)[1:], kernel.name))
    onnx.save(model, file)
    with pytest.raises(SystemExit, match="differs by" if weight == "score" else "mini's shape"):
        main(["mini", "--from", str(tmp_path / "repository"), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_models_of_another_shape_are_refused(tmp_path: Path) -> None:
    publish_tiny(tmp_path / "repository")
    for repository, name, reason in (
        (MODEL_REPOSITORY, "mini-text", "generator"),
        (tmp_path / "repository", "tiny", "trained from nothing"),
        (tmp_path / "repository", "none", "no version"),
    ):
        with pytest.raises(SystemExit, match=reason):
            main([name, "--from", str(repository), "--out", str(tmp_path / name)])
