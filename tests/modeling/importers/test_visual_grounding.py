"""visual-grounding-api's checkpoints against the outputs of its own code (golden/vg of the published data)."""

import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import torch
from peft.tuners.lora import LoraLayer
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from referent.core.prompts import ExpressionError, Prompt, PromptEncoder
from referent.modeling.checkpoint import (
    CheckpointError,
    CheckpointSpec,
    load_checkpoint,
    load_checkpoint_encoder,
    load_checkpoint_spec,
)
from referent.modeling.grounder import load_grounder
from referent.modeling.grounding import GroundingModel
from referent.modeling.importers.visual_grounding import import_visual_grounding, load_saved, rebuild
from referent.modeling.llava import TEMPLATES

HIDDEN_TOLERANCE, BOX_TOLERANCE = 1e-4, 1e-5
NAMES = {"last": "unpadded", "left600": "left600"}  # our reading -> the golden's
BASE = "base-llava-1.5-tiny-hf"


@pytest.fixture(scope="module")
def golden(data_folder: Path) -> Path:
    return data_folder / "golden" / "vg"


@pytest.fixture(scope="module")
def arrays(golden: Path) -> Mapping[str, np.ndarray]:
    return np.load(golden / "golden.npz")


@pytest.fixture(scope="module")
def cases(golden: Path) -> list[dict]:
    return json.loads((golden / "golden.json").read_text())["cases"]


@pytest.fixture(scope="module")
def imported(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """A checkpoint for each variant and reading, made once."""
    folder = tmp_path_factory.mktemp("imported")

    def make(variant: str, read: str) -> Path:
        out = folder / variant / read
        if not out.exists():
            import_visual_grounding(golden / variant / "best.pth", golden / BASE, out, read)
        return out

    return make


def pixels(arrays: Mapping[str, np.ndarray], case: int) -> torch.Tensor:
    """The square (1, 336, 336, 3) that the original's own processor made, as bytes."""
    normalised = torch.from_numpy(arrays[f"{0 if case < 3 else 3}.pixel_values"])
    mean, std = (
        torch.tensor(v)[:, None, None]
        for v in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    )
    return (255 * (normalised * std + mean)).round().to(torch.uint8).permute(0, 2, 3, 1)


@torch.inference_mode()
def answers(
    model: GroundingModel, encoder: PromptEncoder, arrays: Mapping[str, np.ndarray], case: dict, limit: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """What enters the head (1, D), and the box (1, 4)."""
    ids = (encoder.prefix + encoder.suffix(case["text"]))[:limit]
    segments = [0] * len(encoder.prefix) + [1] * (len(ids) - len(encoder.prefix))
    features = model.encode_image(pixels(arrays, case["i"]))
    row = (torch.tensor([values]) for values in (ids, segments, [len(ids) - 1]))
    hidden, _ = model.read_expressions(*row, features)
    return hidden[:, 0], model.box_head(hidden)[0][:, 0]


def check(
    model: GroundingModel,
    encoder: PromptEncoder,
    arrays: Mapping[str, np.ndarray],
    cases: list[dict],
    key: str,
    limit: int | None = None,
) -> None:
    for case in cases:
        hidden, box = answers(model, encoder, arrays, case, limit)
        expected = f"{case['i']}.{key}"
        np.testing.assert_allclose(hidden, arrays[f"{expected}.head_input"], atol=HIDDEN_TOLERANCE, rtol=0)
        np.testing.assert_allclose(box, arrays[f"{expected}.bbox"], atol=BOX_TOLERANCE, rtol=0)


@pytest.mark.parametrize("read", NAMES)
@pytest.mark.parametrize("variant", ["main", "ablation"])
def test_boxes_are_those_of_the_projects_own_code(
    imported: Callable[[str, str], Path], arrays: Mapping[str, np.ndarray], cases: list[dict], variant: str, read: str
) -> None:
    model, spec = load_checkpoint(imported(variant, read))
    encoder = load_checkpoint_encoder(imported(variant, read), spec)
    check(model, encoder, arrays, cases, f"{variant}.{NAMES[read]}")


def test_what_training_read_of_a_short_expression_says_nothing_of_it(
    imported: Callable[[str, str], Path], arrays: Mapping[str, np.ndarray], cases: list[dict]
) -> None:
    spec = load_checkpoint_spec(imported("main", "left600"))
    encoder = load_checkpoint_encoder(imported("main", "left600"), spec)
    assert encoder.suffix("man") == encoder.suffix("dog")
    for case in cases:  # the recorded positions
        read = len(encoder.prefix) + len(encoder.suffix(case["text"])) - 1
        assert read == case["left600_index_in_unpadded"]
    with pytest.raises(ExpressionError, match="too short"):
        PromptEncoder(
            spec.prompt.model_copy(update={"left_padded": 2000}), imported("main", "left600") / "tokenizer.json", 576
        ).suffix("man")


def _without_adapter(model: GroundingModel) -> None:
    model.llava = model.llava.unload()


def _alpha_as_rank(model: GroundingModel) -> None:
    for module in model.llava.modules():
        if isinstance(module, LoraLayer):
            module.scaling["default"] = 1.0


def _before_the_norm(model: GroundingModel) -> None:
    model.base.model.language_model.norm = nn.Identity()


def _rounded(model: GroundingModel) -> None:
    model.llava.bfloat16().float()


@pytest.mark.parametrize("mistake", [_without_adapter, _alpha_as_rank, _before_the_norm, _rounded])
def test_mistakes_in_the_weights_are_seen(
    imported: Callable[[str, str], Path],
    arrays: Mapping[str, np.ndarray],
    cases: list[dict],
    mistake: Callable[[GroundingModel], None],
) -> None:
    model, spec = load_checkpoint(imported("main", "last"))
    encoder = load_checkpoint_encoder(imported("main", "last"), spec)
    mistake(model)
    for case in cases:
        with pytest.raises(AssertionError):
            check(model, encoder, arrays, [case], "main.unpadded")


@pytest.mark.parametrize("variant", ["main", "ablation"])
@pytest.mark.parametrize(
    ("read", "change"),
    [
        ("last", {"left_padded": 600}),  # where training reads
        ("left600", {"left_padded": None}),
        ("last", {"template": TEMPLATES["vg-text"]}),  # the prompt that its API asks with by mistake
    ],
    ids=["training's position", "the last position", "the API's prompt"],
)
def test_mistakes_in_the_prompt_are_seen(
    imported: Callable[[str, str], Path],
    arrays: Mapping[str, np.ndarray],
    cases: list[dict],
    variant: str,
    read: str,
    change: dict,
) -> None:
    folder = imported(variant, read)
    model, spec = load_checkpoint(folder)
    prompt = Prompt(**spec.prompt.model_dump() | change)
    encoder = PromptEncoder(prompt, folder / "tokenizer.json", spec.image_tokens)
    for case in cases:
        with pytest.raises(AssertionError):
            check(model, encoder, arrays, [case], f"{variant}.{NAMES[read]}")


@pytest.mark.parametrize("variant", ["main", "ablation"])
def test_a_prompt_cut_at_600_tokens_is_seen(
    imported: Callable[[str, str], Path], arrays: Mapping[str, np.ndarray], cases: list[dict], variant: str
) -> None:
    model, spec = load_checkpoint(imported(variant, "last"))
    encoder = load_checkpoint_encoder(imported(variant, "last"), spec)
    check(model, encoder, arrays, cases, f"{variant}.right600", limit=600)  # what the mistake gives
    cut = [case for case in cases if case["n_tokens"] > 600]
    assert len(cut) == 2
    for case in cut:
        with pytest.raises(AssertionError):
            check(model, encoder, arrays, [case], f"{variant}.unpadded", limit=600)


@pytest.mark.parametrize("mode", ["letterbox", "stretch"])
def test_pixels_are_the_centre_crop_of_the_projects_own_processor(
    imported: Callable[[str, str], Path], golden: Path, arrays: Mapping[str, np.ndarray], cases: list[dict], mode: str
) -> None:
    spec = load_checkpoint_spec(imported("main", "last"))
    other = spec.image.model_copy(update={"mode": mode})
    for case in cases:
        image = Image.open(golden / case["image"]).convert("RGB")
        theirs = pixels(arrays, case["i"])[0].numpy().astype(int)
        assert abs(spec.image.apply(image) - theirs).max() <= 1  # torchvision's bicubic rounds otherwise
        assert abs(other.apply(image) - theirs).max() > 1


@pytest.mark.parametrize("read", NAMES)
def test_boxes_are_of_the_whole_image_and_all_its_expressions_share_a_pass(
    imported: Callable[[str, str], Path], golden: Path, arrays: Mapping[str, np.ndarray], cases: list[dict], read: str
) -> None:
    grounder = load_grounder(imported("main", read), device="cpu")
    for name in ("landscape.png", "portrait.png"):
        asked = [case for case in cases if case["image"] == name]
        image = Image.open(golden / name).convert("RGB")
        found = grounder.ground(image, [case["text"] for case in asked])
        for case, answer in zip(asked, found, strict=True):
            center_x, center_y, width, height = arrays[f"{case['i']}.main.{NAMES[read]}.bbox"][0]
            corners = np.array(
                [center_x - width / 2, center_y - height / 2, center_x + width / 2, center_y + height / 2]
            )
            np.testing.assert_allclose(
                np.array(answer.box_xyxy) / np.tile(image.size, 2), corners.clip(0, 1), atol=1e-4, rtol=0
            )
            assert (answer.score, answer.present) == (None, None)


def _nested(name: str) -> str:
    """As transformers 5 saves some bases."""
    return f"model.{name}"


def _flat(name: str) -> str:
    """As LlavaForConditionalGeneration itself names them."""
    name = name.replace("language_model.lm_head", "lm_head")
    name = name.replace("language_model.model.", "model.language_model.")
    return f"model.{name}" if name.startswith(("vision_tower", "multi_modal_projector")) else name


ADAPTED = "language_model.base_model.model."


@pytest.mark.parametrize("rename", [_nested, _flat])
@pytest.mark.parametrize("prefix", [f"backbone.model.{ADAPTED}", f"backbone.{ADAPTED}", "module."])
def test_weights_are_found_whatever_their_prefix(
    golden: Path, arrays: Mapping[str, np.ndarray], cases: list[dict], tmp_path: Path, rename: Callable, prefix: str
) -> None:
    base = tmp_path / "base"
    copytree(golden / BASE, base)
    weights = load_file(base / "model.safetensors")
    save_file({rename(name): tensor for name, tensor in weights.items()}, base / "model.safetensors", {"format": "pt"})
    saved = torch.load(golden / "main" / "best.pth", weights_only=True)
    saved["model_state"] = {
        name.replace(f"backbone.model.{ADAPTED}", prefix): tensor for name, tensor in saved["model_state"].items()
    }
    torch.save(saved, tmp_path / "latest.pth")
    import_visual_grounding(tmp_path / "latest.pth", base, tmp_path / "out")
    model, spec = load_checkpoint(tmp_path / "out")
    check(model, load_checkpoint_encoder(tmp_path / "out", spec), arrays, cases[:2], "main.unpadded")


@pytest.mark.parametrize(("variant", "count"), [("main", 198), ("ablation", 6)])
@pytest.mark.filterwarnings("ignore:.*meta parameter")
def test_every_weight_of_the_full_size_finds_its_place(golden: Path, variant: str, count: int) -> None:
    shapes = json.loads((golden / "keys_7b.json").read_text())[variant]
    assert len(shapes) == count
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336,
            patch_size=14, projection_dim=768,
        ),
        text_config=LlamaConfig(vocab_size=32064),
        image_token_index=32000,
    )  # fmt: skip
    with torch.device("meta"):
        llava = LlavaForConditionalGeneration(config)
    state = {name: torch.zeros(shape) for name, shape in shapes.items()}
    model = rebuild(llava, Path("best.pth"), {"model_state": state, "config": {}, "metrics": {}})
    trained = [parameter for name, parameter in model.named_parameters() if "lora_" in name or "box_head" in name]
    assert len(trained) == count
    assert sum(parameter.numel() for parameter in trained) == {198: 12_582_912 + 2_230_020, 6: 2_230_020}[count]


def test_the_checkpoint_says_where_it_comes_from(imported: Callable[[str, str], Path], golden: Path) -> None:
    spec = load_checkpoint_spec(imported("main", "last"))
    metrics = load_saved(golden / "main" / "best.pth")["metrics"]
    assert (spec.kind, spec.box_frame, spec.image.mode, spec.has_scores) == ("head", "image", "center_crop", False)
    assert spec.prompt.template == "<image>\nFind the object referred to: {expression} [LOC]"
    [(name, figures)] = spec.evaluation.items()
    assert "left600" in name
    assert figures == {"mean_iou": metrics["val_iou"], "rmse": metrics["val_rmse"], "mae": metrics["val_mae"]}
    assert spec.training["file"]["name"] == "best.pth"
    assert (spec.training["epoch"], spec.training["settings"]["lora_rank"]) == (metrics["epoch"], 16)


class _Code:
    def __reduce__(self) -> tuple:
        return (print, ("run",))


def _change(state: Callable[[dict], dict], **config: object) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        saved = torch.load(file, weights_only=True)
        saved["model_state"] = state(saved["model_state"])
        saved["config"] |= config
        torch.save(saved, file)

    return damage


def _metrics(**figures: object) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        saved = torch.load(file, weights_only=True)
        torch.save(saved | {"metrics": figures}, file)

    return damage


def _drop(part: str) -> Callable[[dict], dict]:
    return lambda state: {name: tensor for name, tensor in state.items() if part not in name}


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no file": (lambda f: f.unlink(), "No such file"),
    "pointer of LFS": (lambda f: f.write_text(POINTER), "git lfs pull"),
    "empty": (lambda f: f.write_bytes(b""), "cannot be loaded"),
    "cut off": (lambda f: f.write_bytes(f.read_bytes()[:-5000]), "cannot be loaded"),
    "code": (lambda f: f.write_bytes(pickle.dumps({"model_state": _Code()})), "only weights are loaded"),
    "code in torch's archive": (lambda f: torch.save({"model_state": {}, "x": _Code()}, f), "only weights are loaded"),
    "a state alone": (lambda f: torch.save({"head.mlp.0.bias": torch.zeros(1)}, f), "no model_state"),
    "a list": (lambda f: torch.save([1], f), "no model_state"),
    "no head": (_change(_drop("head.")), "lacks mlp.0.bias"),
    "a layer of the head": (_change(_drop("mlp.3")), "lacks mlp.3"),
    "a layer of LoRA": (_change(_drop("layers.1")), "lacks .*layers.1.*and 3 more"),
    "half of LoRA": (_change(_drop("lora_B")), "lacks .*lora_B"),
    "no LoRA": (_change(_drop("lora_")), "use_lora True and holds 0"),
    "LoRA unannounced": (_change(lambda state: state, use_lora=False), "use_lora False and holds 12"),
    "another rank": (_change(lambda state: state, lora_rank=8), r"lora_A.weight \[16, 64\] instead of \[8, 64\]"),
    "another base": (
        _change(lambda state: {n: torch.cat([t, t], -1) if "lora_A" in n else t for n, t in state.items()}),
        r"\[16, 128\] instead of \[16, 64\].*llava-hf/llava-1.5-7b-hf",
    ),
    "more layers": (
        _change(lambda s: s | {n.replace("layers.1", "layers.2"): t.clone() for n, t in s.items() if "layers.1" in n}),
        "has .*layers.2.* which the model has not",
    ),
    "another target": (
        _change(lambda state: {n.replace("q_proj", "o_proj"): t for n, t in state.items()}),
        "lacks .*q_proj.*and has .*o_proj",
    ),
    "weights of another project": (_change(lambda s: s | {"backbone.visual_prompt": torch.zeros(3)}), "visual_prompt"),
    "a weight twice": (_change(lambda state: state | {"x.head.mlp.0.bias": torch.ones(512)}), "has x.head"),
    "no figures": (_metrics(val_iou="high"), "could not convert"),
    "not a number": (
        _change(lambda state: {n: t * torch.nan if n.endswith("mlp.6.bias") else t for n, t in state.items()}),
        "not finite in mlp.6.bias",
    ),
    "no tensors": (_change(lambda state: state | {"head.mlp.0.bias": 1}), "head.mlp.0.bias"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_refused_in_one_line_and_nothing_is_written(golden: Path, tmp_path: Path, name: str) -> None:
    damage, message = DAMAGES[name]
    source = tmp_path / "best.pth"
    source.write_bytes((golden / "main" / "best.pth").read_bytes())
    damage(source)
    with pytest.raises(CheckpointError, match=message) as refused:
        import_visual_grounding(source, golden / BASE, tmp_path / "new" / "out")
    assert str(source) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert {path.name for path in tmp_path.iterdir()} <= {"best.pth"}


def test_what_is_there_already_stays(imported: Callable[[str, str], Path], golden: Path) -> None:
    out = imported("ablation", "last")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match="there already"):
        import_visual_grounding(golden / "main" / "best.pth", golden / BASE, out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_left600_is_for_prompts_of_600(golden: Path, tmp_path: Path) -> None:
    source = tmp_path / "best.pth"
    source.write_bytes((golden / "main" / "best.pth").read_bytes())
    _change(lambda state: state, max_length=128)(source)
    with pytest.raises(CheckpointError, match="128 tokens: use --read last"):
        import_visual_grounding(source, golden / BASE, tmp_path / "out", "left600")
    assert isinstance(import_visual_grounding(source, golden / BASE, tmp_path / "out"), CheckpointSpec)
