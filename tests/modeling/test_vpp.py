"""Visual position prompts against the outputs of VPP-LLaVA's own code (golden/vpp of the published data)."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from referent.core.spec import ModelSpec
from referent.core.transform import ImageTransform
from referent.generation.engine import DecoderRow, Engine, WrittenAnswer
from referent.generation.questions import load_tokenizer
from referent.kinds.generator import generation_of
from referent.modeling.checkpoint import CheckpointError, load_checkpoint, load_checkpoint_encoder
from referent.modeling.grounder import load_grounder
from referent.modeling.grounding import GroundingModel
from referent.modeling.importers.vpp_llava import import_vpp_llava
from referent.modeling.text_decoder import TorchDecoder
from referent.modeling.vpp import (
    AXIS_SHARE,
    CLIP_MEAN,
    CLIP_STD,
    DETECTOR_IMAGE,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Axis,
    Detector,
    VisualPrompts,
)
from tests.support.visual_prompts import detector_tensors, save_prompted_checkpoint, tiny_prompts

EMBEDDING_TOLERANCE, LOGIT_TOLERANCE = 1e-4, 5e-4
CASES = (0, 1, 2)


@pytest.fixture(scope="module")
def golden(data_folder: Path) -> Path:
    return data_folder / "golden" / "vpp"


@pytest.fixture(scope="module")
def recorded(golden: Path) -> dict:
    return json.loads((golden / "golden.json").read_text())


@pytest.fixture(scope="module")
def arrays(golden: Path) -> Mapping[str, np.ndarray]:
    return np.load(golden / "golden.npz")


@pytest.fixture(scope="module")
def checkpoint(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("imported") / "vpp"
    import_vpp_llava(golden / "llava-vpp-tiny", out, golden / "clip-stock-tiny-336")
    return out


@pytest.fixture(scope="module")
def spec(checkpoint: Path) -> ModelSpec:
    return load_checkpoint(checkpoint)[1]


@pytest.fixture
def model(checkpoint: Path) -> GroundingModel:
    return load_checkpoint(checkpoint)[0]


def picture(golden: Path, recorded: dict, case: int) -> Image.Image:
    return Image.open(golden / recorded["cases"][case]["image"]).convert("RGB")


def tensors(image: Image.Image, transform: ImageTransform, detector: ImageTransform) -> tuple[torch.Tensor, ...]:
    """What `encode_image` takes, of one image."""
    return (
        torch.from_numpy(transform.apply(image))[None],
        torch.from_numpy(detector.apply(image))[None],
        torch.tensor([detector.extent(image.size)], dtype=torch.int32),
    )


def normalised(square: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    return ((square / 255 - mean) / std).transpose(2, 0, 1)


@pytest.mark.parametrize("case", CASES)
def test_pixels_are_exactly_those_of_the_original(
    golden: Path, recorded: dict, arrays: Mapping[str, np.ndarray], spec: ModelSpec, case: int
) -> None:
    image = picture(golden, recorded, case)
    square = normalised(spec.image.apply(image), CLIP_MEAN, CLIP_STD)
    np.testing.assert_allclose(square, arrays[f"{case}.clip_pixel_values"][0], atol=1e-6)
    x0, y0, x1, y1 = spec.detector_image.extent(image.size)
    square = normalised(spec.detector_image.apply(image), IMAGENET_MEAN, IMAGENET_STD)
    expected = np.zeros_like(square)
    expected[:, y0:y1, x0:x1] = square[:, y0:y1, x0:x1]
    np.testing.assert_allclose(expected, arrays[f"{case}.detr_pixel_values"][0], atol=1e-6)


@torch.inference_mode()
@pytest.mark.parametrize("case", CASES)
def test_embeddings_and_logits_are_those_of_the_original(
    golden: Path, recorded: dict, arrays: Mapping[str, np.ndarray], model: GroundingModel, spec: ModelSpec, case: int
) -> None:
    features = model.encode_image(*detector_tensors(picture(golden, recorded, case), spec))
    np.testing.assert_allclose(features, arrays[f"{case}.visual_embeddings"], atol=EMBEDDING_TOLERANCE)
    ids = arrays[f"{case}.input_ids"][0].tolist()
    at = ids.index(-200)
    ids[at : at + 1] = [spec.prompt.image_token_id] * spec.image_tokens
    hidden = model.embed(torch.tensor([ids]), features)
    logits = model.base.lm_head(model.base.model.language_model(inputs_embeds=hidden).last_hidden_state)
    np.testing.assert_allclose(logits[:, -32:], arrays[f"{case}.logits_last32"], atol=LOGIT_TOLERANCE)
    np.testing.assert_allclose(logits.logsumexp(-1), arrays[f"{case}.logits_logsumexp"], atol=LOGIT_TOLERANCE)
    np.testing.assert_array_equal(logits.argmax(-1), arrays[f"{case}.logits_argmax"])


@torch.inference_mode()
def test_stages_of_the_detector_are_those_of_the_original(
    golden: Path, recorded: dict, arrays: Mapping[str, np.ndarray], model: GroundingModel, spec: ModelSpec
) -> None:
    square, *_ = detector_tensors(picture(golden, recorded, 0), spec)
    prompts = model.visual_prompts
    pixels = torch.from_numpy(normalised(square[0].numpy(), CLIP_MEAN, CLIP_STD))[None].float()
    np.testing.assert_allclose(prompts.axis(pixels)[..., ::8, ::8], arrays["0.clip_mixed_sub8"], atol=1e-5)
    pixels = prompts.axis(torch.from_numpy(arrays["0.detr_pixel_values"]))
    np.testing.assert_allclose(pixels[..., ::16, ::16], arrays["0.detr_mixed_sub16"], atol=1e-5)
    backbone = prompts.detector.backbone(pixels).mean((2, 3))
    np.testing.assert_allclose(backbone, arrays["0.resnet_layer4_mean_over_hw"], atol=EMBEDDING_TOLERANCE)
    positions = prompts.detector.positions.transpose(1, 2).unflatten(-1, (20, 20))
    np.testing.assert_allclose(positions[:, ::16], arrays["0.detr_pos_encoding"], atol=1e-6)
    np.testing.assert_allclose(prompts.detector(pixels), arrays["0.detr_queries"], atol=EMBEDDING_TOLERANCE)


@torch.inference_mode()
def test_answers_under_a_grammar_are_those_of_the_original(
    golden: Path, arrays: Mapping[str, np.ndarray], model: GroundingModel, spec: ModelSpec, checkpoint: Path
) -> None:
    generation = generation_of(spec)
    tokenizer_json = load_checkpoint_encoder(checkpoint, spec).tokenizer_json
    tokenizer = load_tokenizer(tokenizer_json, model.base.config.text_config.vocab_size, generation.eos_token_id)
    engine = Engine(TorchDecoder(model, slots=3, columns=1280))
    cases = json.loads((golden / "constrained.json").read_text())["cases"]
    rows = []
    for case in cases:
        image = Image.open(golden / case["image"]).convert("RGB")
        ids = arrays[f"{case['i']}.input_ids"][0].tolist()  # with the white space that an encoder makes one
        at = ids.index(-200)
        larks = (generation.grammar.lark(case["expression"], 1), case["probe"]["grammar"])
        answers = [WrittenAnswer(tokenizer, lark, ids[at + 1 :]) for lark in larks]
        prefix = ids[:at] + [spec.prompt.image_token_id] * spec.image_tokens
        rows.append(DecoderRow(prefix, model.encode_image(*detector_tensors(image, spec)), answers))
        engine.admit(rows[-1])
    while engine.active:
        engine.step()
    assert not engine.errors
    for row, case in zip(rows, cases, strict=True):
        for answer, wanted in zip(row.answers, (case["answer"], case["probe"]), strict=True):
            assert (answer.ids, answer.text) == (wanted["ids"], wanted["text"])
            for decision, expected in zip(answer.decisions, wanted["decisions"], strict=True):
                assert decision.logprob == pytest.approx(expected["logprob_allowed"], abs=1e-4)
                assert decision.mass == pytest.approx(expected["mass"], abs=1e-4)
            (found,) = wanted["found"]
            assert answer.score(found["span"]) == pytest.approx(wanted["score"], rel=1e-4)
            boxes = [
                spec.frame(tuple(case["size_wh"])).boxes_to_image(b.values)
                for b in generation.grammar.read(answer.text)
            ]
            assert boxes == ([] if found["degenerate"] else [pytest.approx(found["box_px_unclipped"], abs=1e-3)])


Inputs = tuple[torch.Tensor, ...]
Mistake = Callable[[GroundingModel, Image.Image, pytest.MonkeyPatch], Inputs]


def _inputs(image: Image.Image) -> Inputs:
    return tensors(image, ImageTransform(mode="pad", size=336), DETECTOR_IMAGE)


def _mask(value: float, within: int = 0) -> Mistake:
    def make(model: GroundingModel, image: Image.Image, patch: pytest.MonkeyPatch) -> Inputs:
        model.visual_prompts.axis.mask[within : 336 - within, within : 336 - within] = value
        return _inputs(image)

    return make


def _axis(share: float, mode: str) -> Mistake:
    def make(model: GroundingModel, image: Image.Image, patch: pytest.MonkeyPatch) -> Inputs:
        def forward(self: Axis, pixels: torch.Tensor) -> torch.Tensor:
            prompt, mask = (
                F.interpolate(x[None], pixels.shape[-2:], mode=mode) for x in (self.prompt, self.mask[None])
            )
            return (1 - share) * pixels + share * prompt * mask

        patch.setattr(Axis, "forward", forward)
        return _inputs(image)

    return make


def _other_detector(model: GroundingModel, image: Image.Image, patch: pytest.MonkeyPatch) -> Inputs:
    torch.manual_seed(0)
    model.visual_prompts.detector = Detector(model.visual_prompts.shape).eval()
    return _inputs(image)


def _epsilon(model: GroundingModel, image: Image.Image, patch: pytest.MonkeyPatch) -> Inputs:
    for name, buffer in model.visual_prompts.detector.named_buffers():
        if name.endswith("running_var"):
            buffer += 1e-3
    return _inputs(image)


def _detector_image(**settings: object) -> Mistake:
    def make(model: GroundingModel, image: Image.Image, patch: pytest.MonkeyPatch) -> Inputs:
        transform = ImageTransform(**DETECTOR_IMAGE.model_dump() | settings)
        return tensors(image, ImageTransform(mode="pad", size=336), transform)

    return make


def _image(**settings: object) -> Mistake:
    def make(model: GroundingModel, image: Image.Image, patch: pytest.MonkeyPatch) -> Inputs:
        return tensors(image, ImageTransform(**{"mode": "pad", "size": 336} | settings), DETECTOR_IMAGE)

    return make


def _mask_padding(model: GroundingModel, image: Image.Image, patch: pytest.MonkeyPatch) -> Inputs:
    inputs = _inputs(image)
    x0, y0, x1, y1 = inputs[2][0].tolist()
    seen = torch.zeros(1, 1, 640, 640)
    seen[..., y0:y1, x0:x1] = 1
    seen = F.interpolate(seen, (20, 20))[:, 0]
    detector = model.visual_prompts.detector
    along = [axis / (axis.max() + 1e-6) * 2 * np.pi for axis in (seen.cumsum(1), seen.cumsum(2))]
    wave = 10000 ** (2 * (torch.arange(128) // 2) / 128)
    parts = [(axis[..., None] / wave) for axis in along]
    positions = torch.cat([torch.stack((p[..., ::2].sin(), p[..., 1::2].cos()), -1).flatten(-2) for p in parts], -1)
    detector.positions = positions.flatten(1, 2)
    for part, name in ((detector.encoder, "attention_mask"), (detector.decoder, "encoder_attention_mask")):
        forward = part.forward
        patch.setattr(part, "forward", lambda f=forward, n=name, **given: f(**given | {n: seen.flatten(1)}))
    return inputs


def _lower(model: GroundingModel, image: Image.Image, patch: pytest.MonkeyPatch) -> Inputs:
    square, detector_image, frame = _inputs(image)
    return square, detector_image.roll(1, 1), frame + torch.tensor([0, 1, 0, 1])


def _reversed(model: GroundingModel, image: Image.Image, patch: pytest.MonkeyPatch) -> Inputs:
    cat = torch.cat
    patch.setattr("referent.modeling.grounding.torch.cat", lambda parts, dim: cat(parts[::-1], dim=dim))
    return _inputs(image)


def _omitted(model: GroundingModel, image: Image.Image, patch: pytest.MonkeyPatch) -> Inputs:
    patch.setattr(VisualPrompts, "forward", lambda self, *_: torch.zeros(1, 0, 64))
    return _inputs(image)


def _last_layer(model: GroundingModel, image: Image.Image, patch: pytest.MonkeyPatch) -> Inputs:
    model.base.config.vision_feature_layer = -1
    return _inputs(image)


MISTAKES: dict[str, Mistake] = {  # by the names under which their size is recorded
    "mask all ones": _mask(1),
    "mask all zeros (prompt ignored)": _mask(0),
    "border 29 instead of 30": _mask(0, within=29),
    "image not scaled by 0.95 (alpha 1.0)": _axis(0, "nearest"),
    "prompt/mask resized bilinear instead of nearest": _axis(AXIS_SHARE, "bilinear"),
    "stock DETR instead of tuned": _other_detector,
    "FrozenBN eps 0 / 1e-3 approx (running_var+1e-3)": _epsilon,
    "DETR image stretched to 640x640, not padded": _detector_image(mode="stretch"),
    "DETR mask True on padding": _mask_padding,
    "DETR tokens before CLIP tokens": _reversed,
    "DETR tokens omitted": _omitted,
    "CLIP last layer instead of -2": _last_layer,
    "pad colour black": _image(pad_rgb=(0, 0, 0)),
    "centre crop instead of pad": _image(mode="center_crop"),
    "DETR resize bicubic instead of bilinear": _detector_image(resample="bicubic"),
    "DETR padding one pixel lower (round half up)": _lower,
}
OTHERS = {"resized first, then padded": _image(mode="letterbox")}  # without a recorded effect on embeddings
ELSEWHERE = {"stock CLIP instead of tuned"}  # tests/modeling/importers/test_vpp_llava.py


@torch.inference_mode()
@pytest.mark.parametrize("name", MISTAKES | OTHERS)
def test_a_mistake_is_beyond_the_tolerance(
    golden: Path, recorded: dict, arrays: Mapping[str, np.ndarray], model: GroundingModel,
    monkeypatch: pytest.MonkeyPatch, name: str,
) -> None:  # fmt: skip
    made = (MISTAKES | OTHERS)[name](model, picture(golden, recorded, 0), monkeypatch)
    features, expected = model.encode_image(*made).numpy(), arrays["0.visual_embeddings"]
    if features.shape != expected.shape:
        return
    difference = np.abs(features - expected).max()
    assert difference > EMBEDDING_TOLERANCE
    if name in MISTAKES and MISTAKES[name] is not _other_detector:  # that stock is not published
        assert difference == pytest.approx(recorded["mistakes"][name]["vis"], rel=0.05)


def test_every_recorded_mistake_is_tried(recorded: dict) -> None:
    assert recorded["mistakes"].keys() == MISTAKES.keys() | ELSEWHERE


def test_the_axis_is_learned() -> None:
    axis = Axis(336, 640)
    (axis(torch.zeros(1, 3, 336, 336)).sum() + axis(torch.zeros(1, 3, 640, 640)).sum()).backward()
    gradient = axis.prompt.grad
    assert (gradient[:, 30:-30, 30:-30] == 0).all()
    assert (gradient[:, :30] > 0).all()


def test_what_lies_outside_the_frame_does_not_matter() -> None:
    prompts = tiny_prompts(336, 8)
    image = torch.randint(0, 256, (1, 640, 640, 3), dtype=torch.uint8)
    frame = torch.tensor([[0, 100, 640, 500]], dtype=torch.int32)
    other = image.clone()
    other[:, :100] = other[:, 500:] = 7
    with torch.inference_mode():
        torch.testing.assert_close(prompts(image, frame), prompts(other, frame), rtol=0, atol=0)
        other[:, 499] = 7
        assert not torch.equal(prompts(image, frame), prompts(other, frame))


def test_a_box_head_reads_behind_visual_prompts(tiny_checkpoint: Path, tmp_path: Path) -> None:
    grounder = load_grounder(save_prompted_checkpoint(tmp_path / "prompted", tiny_checkpoint), "cpu")
    noise = np.random.default_rng(0).integers(0, 256, (2, 60, 80, 3), np.uint8)
    pictures = [Image.fromarray(pixels) for pixels in noise] + [Image.fromarray(noise[0]).resize((60, 80))]
    together = grounder.ground_batch(pictures, [["the red cup", "the plate"]] * 3)
    for picture, answers in zip(pictures, together, strict=True):
        alone = grounder.ground(picture, ["the red cup", "the plate"])
        for answer, own in zip(answers, alone, strict=True):
            assert answer.box_xyxy == pytest.approx(own.box_xyxy, abs=1e-3)
    model, spec = load_checkpoint(tmp_path / "prompted")
    with torch.inference_mode():
        features = [model.encode_image(*detector_tensors(picture, spec)) for picture in pictures]
    assert features[0].shape == (1, 104, 64)
    assert (features[0] - features[1]).abs()[:, 4:].max() > 1e-3  # the queries see the second picture


def test_a_checkpoint_has_both_pictures_or_one(tiny_checkpoint: Path, tmp_path: Path) -> None:
    prompted = save_prompted_checkpoint(tmp_path / "prompted", tiny_checkpoint)
    spec = json.loads((prompted / "referent.json").read_text())
    for lost in ("visual_prompts", "detector_image"):
        (prompted / "referent.json").write_text(json.dumps(spec | {lost: None}))
        with pytest.raises(CheckpointError, match="belong together"):
            load_checkpoint(prompted)
