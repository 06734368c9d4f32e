"""Training with visual position prompts: what moves and at which rate, conversations, and what may be a base."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from referent.modeling.checkpoint import CheckpointError, load_checkpoint, load_checkpoint_encoder
from referent.modeling.importers.vpp_llava import DETECTOR, GRAMMAR, TEMPLATE
from referent.modeling.vpp import draw_axis
from referent.training.bases import open_base
from referent.training.dialogue_stream import DialogueStream, load_dialogues
from referent.training.encoding import collate_answers, collate_trimmed
from referent.training.losses import LossWeights, Objective
from referent.training.modes import parameter_groups, select_trained
from referent.training.recipe import Recipe, RecipeError
from referent.training.record_stream import DataError, RecordStream, load_records
from referent.training.train import train
from tests.support.text_tokenizer import EOS_ID, IMAGE_ID
from tests.support.visual_prompts import (
    AXIS_ALONE,
    SMALLEST_SHAPE,
    save_llava,
    save_prompted_checkpoint,
    save_writing_checkpoint,
)

MakeRecipe = Callable[..., Recipe]
BOX = "[0.25, 0.25, 0.50, 0.75]"
ASK = "please provide the bounding box coordinate of the region this sentence describes: the red cup"
CAPTION = f"please provide a short description for this region: {BOX}."


@pytest.fixture(scope="session")
def prompted(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prompted") / "checkpoint"
    return save_prompted_checkpoint(out, tiny_checkpoint, adapted=False, shape=SMALLEST_SHAPE)


@pytest.fixture(scope="session")
def llava_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="session")
def writing(llava_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_writing_checkpoint(tmp_path_factory.mktemp("writing"), llava_directory)


@pytest.fixture
def conversations(records_folder: Path, tmp_path: Path) -> Path:
    """A box, a caption, three answers about one image, and one about none; and rows that nobody can be trained on."""
    said = [
        ("train-0.png", ["<image>\n" + ASK, BOX]),
        ("train-1.png", ["<image>\n" + CAPTION, "a red cup"]),
        ("train-2.png", ["what is it?\n<image>", "a cup", ASK, BOX, "and now?", "none"]),
        (None, ["who is there?", "nobody"]),
        ("gone.png", ["<image>\n" + ASK, BOX]),
        ("train-3.png", ["<image>\n" + ASK]),
        ("train-3.png", ["<image>\n" + ASK, "  "]),
    ]
    rows = []
    for index, (image, turns) in enumerate(said):
        talk = [{"from": ("human", "gpt")[place % 2], "value": turn} for place, turn in enumerate(turns)]
        rows.append({"id": index, "conversations": talk} | ({"image": image} if image else {}))
    file = tmp_path / "sft.json"
    file.write_text(json.dumps(rows))
    return file


def objective_of(recipe: Recipe) -> Objective:
    model, spec = open_base(recipe)
    select_trained(model, spec, load_checkpoint_encoder(recipe.out, spec), recipe)
    return Objective(model, LossWeights())


def batch_of(recipe: Recipe) -> dict[str, torch.Tensor]:
    _, spec = open_base(recipe)
    encoder = load_checkpoint_encoder(recipe.out, spec)
    records = load_records(recipe.data / "train.jsonl", recipe.images)
    end = EOS_ID if recipe.answers_in_text else None
    stream = RecordStream(records, recipe.images, spec, encoder, recipe.row_expressions, recipe.seed, end)
    return collate_trimmed([stream[0], stream[1]])


def stream_of(recipe: Recipe) -> DialogueStream:
    _, spec = open_base(recipe)
    encoder = load_checkpoint_encoder(recipe.out, spec)
    return DialogueStream(
        load_dialogues(recipe.conversations, recipe.images), recipe.images, spec, encoder, 0, end_token_id=EOS_ID
    )


@pytest.mark.parametrize("loc_head", [True, False], ids=["head", "text"])
def test_a_step_changes_everything_that_an_answer_depends_on(
    make_recipe: MakeRecipe, prompted: Path, writing: Path, loc_head: bool
) -> None:
    recipe = make_recipe("vpp", base=prompted if loc_head else writing, loc_head=loc_head)
    objective, batch = objective_of(recipe), batch_of(recipe)
    before = {name: value.clone() for name, value in objective.model.named_parameters()}
    optimizer = torch.optim.AdamW(parameter_groups(objective.model, recipe), lr=1e-2)
    objective.train()(**batch)["loss"].backward()
    optimizer.step()
    changed = {name for name, value in objective.model.named_parameters() if not torch.equal(value, before[name])}
    # a detector's first layer attends to nothing but zeros, so its queries and keys do not matter
    idle = "decoder.layers.0.self_attn"
    trained = {name for name, value in objective.model.named_parameters() if value.requires_grad and idle not in name}
    assert trained <= changed
    parts = {"axis.prompt", "detector.backbone", "detector.decoder", "visual_prompts.projector", "vision_tower", "mlp"}
    parts |= {"box_head"} if loc_head else {"lm_head", "embed_tokens"}
    assert all(any(part in name for name in trained) for part in parts)
    assert loc_head == ("lm_head" not in str(trained))


def test_each_group_has_its_published_rate(make_recipe: MakeRecipe, writing: Path) -> None:
    recipe = replace(make_recipe("vpp", base=writing), learning_rate=Recipe.learning_rate)
    model = objective_of(recipe).model
    groups = parameter_groups(model, recipe)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {names[id(parameter)]: group["lr"] for group in groups for parameter in group["params"]}
    for part, rate in {
        "visual_prompts.axis": 2e-4, "visual_prompts.projector": 2e-4, "visual_prompts.detector": 1e-5,
        "vision_tower": 2e-6, "multi_modal_projector": 2e-5, "language_model": 2e-5, "lm_head": 2e-5,
    }.items():  # fmt: skip
        assert {value for name, value in rates.items() if part in name} == {rate}


def test_a_run_with_a_head_is_a_checkpoint_with_prompts(make_recipe: MakeRecipe, prompted: Path) -> None:
    recipe = make_recipe("vpp", base=prompted, loc_head=True, steps=1, val_limit=1)
    figures = train(recipe)
    assert figures["n"] == 1
    model, spec = load_checkpoint(recipe.out / "best")
    assert (spec.kind, spec.visual_prompts, spec.base) == ("head", SMALLEST_SHAPE, "base")
    before = load_file(prompted / "visual_prompts.safetensors")
    assert not torch.equal(model.visual_prompts.axis.prompt, before["axis.prompt"])


def test_the_axis_may_be_the_only_prompt(make_recipe: MakeRecipe, tiny_checkpoint: Path, tmp_path: Path) -> None:
    base = save_prompted_checkpoint(tmp_path / "axis", tiny_checkpoint, adapted=False, shape=AXIS_ALONE)
    recipe = make_recipe("vpp", base=base, loc_head=True, steps=1, val_limit=1)
    train(recipe)
    model, spec = load_checkpoint(recipe.out / "best")
    assert (spec.detector_image, spec.image_tokens, model.has_detector) == (None, 4, False)
    assert set(load_file(recipe.out / "best" / "visual_prompts.safetensors")) == {"axis.prompt"}


def test_every_answer_of_a_conversation_is_trained(make_recipe: MakeRecipe, writing: Path, conversations: Path) -> None:
    stream = stream_of(make_recipe("vpp", base=writing, conversations=conversations))
    answers = {}
    for index in range(len(stream)):
        row = stream[index]
        ends = np.flatnonzero(row["labels"] == EOS_ID).tolist()
        starts = [0, *(end + 1 for end in ends)]
        written = [stream._encoder.decode(row["labels"][a:b].tolist()) for a, b in zip(starts, ends, strict=False)]
        assert ends[-1] == len(row["labels"]) - 1
        shown = int((row["input_ids"] == IMAGE_ID).sum())
        text = stream._encoder.decode([i for i in row["input_ids"].tolist() if i != IMAGE_ID])
        answers[tuple(written)] = (shown, text)
        predicted = row["loc_positions"][row["labels"] != EOS_ID] + 1
        np.testing.assert_array_equal(row["input_ids"][predicted], row["labels"][row["labels"] != EOS_ID])
    assert answers.keys() == {(BOX,), ("a red cup",), ("a cup", BOX, "none"), ("nobody",)}
    assert {answer: shown for answer, (shown, _) in answers.items()} == dict.fromkeys(answers, 9) | {("nobody",): 0}
    hint = "Each image is accompanied by axes. If the question pertains to the bounding box coordinates, refer to the"
    for _, text in answers.values():  # of the first question alone, and without a full stop before it
        assert text.count(hint) == 1
    assert f"what is it? {hint} axes for the response. ASSISTANT: a cup" in answers["a cup", BOX, "none"][1]
    assert f"USER: {ASK} ASSISTANT: {BOX}" in answers["a cup", BOX, "none"][1]
    assert stream.left_out == {"missing image": 1, "no answer": 1, "empty answer": 1}


def test_a_run_on_conversations_learns_to_write_them(
    make_recipe: MakeRecipe, writing: Path, conversations: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rates = {f"{part}_learning_rate": 3e-3 for part in ("language", "projector", "vision", "detector")}
    recipe = make_recipe(
        "vpp", base=writing, conversations=conversations, steps=6, batch=4, val_limit=1, learning_rate=3e-3, **rates
    )
    train(recipe)
    state = json.loads((recipe.out / "checkpoint-6" / "trainer_state.json").read_text())
    losses = [line["text"] for line in state["log_history"] if "text" in line]
    assert losses[-1] < 0.8 * losses[0]
    assert "1 missing image" in caplog.text
    spec = load_checkpoint(recipe.out / "best")[1]
    assert (spec.kind, spec.generation.grammar) == ("generator", GRAMMAR)


@pytest.mark.parametrize("fault", ["no rows", "all faulty", "not JSON", "missing"])
def test_conversations_that_are_of_no_use_are_refused(
    make_recipe: MakeRecipe, writing: Path, tmp_path: Path, fault: str
) -> None:
    file = tmp_path / "sft.json"
    talk = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a cup"}]
    rows = [] if fault == "no rows" else [{"id": 1, "image": "../else.png", "conversations": talk}]
    if fault != "missing":
        file.write_text("[{" if fault == "not JSON" else json.dumps(rows))
    message = {"no rows": "there is none", "all faulty": "leaves the image folder", "not JSON": "not JSON"}
    with pytest.raises(DataError, match=message.get(fault, r"sft\.json")):
        train(make_recipe("vpp", base=writing, conversations=file))


def test_a_conversation_is_cut_off_where_it_is_too_long(make_recipe: MakeRecipe, writing: Path, tmp_path: Path) -> None:
    turns = ["who?", "a cup", "and " * 900, "none"]
    talk = [{"from": ("human", "gpt")[place % 2], "value": turn} for place, turn in enumerate(turns)]
    hopeless = [{"from": "human", "value": "and " * 900}, {"from": "gpt", "value": "none"}]
    file = tmp_path / "sft.json"
    file.write_text(json.dumps([{"id": 1, "conversations": talk}, {"id": 2, "conversations": hopeless}]))
    stream = stream_of(make_recipe("vpp", base=writing, conversations=file))
    assert stream.left_out == {"no answer within 2048 tokens": 1}
    (row,) = (stream[index] for index in range(len(stream)))
    assert len(row["input_ids"]) == 2048
    assert stream._encoder.decode(row["labels"].tolist()) == "a cup"


def test_padding_and_company_change_no_loss(make_recipe: MakeRecipe, writing: Path, conversations: Path) -> None:
    recipe = make_recipe("vpp", base=writing, conversations=conversations)
    objective, stream = objective_of(recipe).eval(), stream_of(recipe)
    rows = [stream[index] for index in range(len(stream))]
    with torch.inference_mode():
        single = [(len(row["labels"]), objective(**collate_answers([row]))["loss"]) for row in rows]
        together = objective(**collate_answers(rows))["loss"]
    torch.testing.assert_close(together, sum(n * loss for n, loss in single) / sum(n for n, _ in single))


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({"mode": "lora", "loc_head": True}, "--loc-head is for vpp"),
        ({"mode": "full", "conversations": Path("sft.json")}, "--conversations is for vpp"),
        ({"mode": "points", "detector": Path("detr.pth")}, "--detector is for vpp"),
        ({"loc_head": True, "conversations": Path("sft.json")}, "--conversations and --loc-head exclude each other"),
        ({"template": "<image>{expression}", "conversations": Path("sft.json")}, "--conversations and --template"),
        ({"loc_head": True}, "no visual position prompts.*--detector"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    make_recipe: MakeRecipe, settings: dict[str, object], remedy: str
) -> None:
    with pytest.raises(RecipeError, match=remedy):
        train(replace(make_recipe("vpp"), **settings))


@pytest.mark.parametrize("content", [None, b"no weights", {"model": {"query_embed.weight": torch.zeros(100, 256)}}])
def test_a_detector_that_is_none_is_refused(
    make_recipe: MakeRecipe, llava_directory: Path, tmp_path: Path, content: object
) -> None:
    file = tmp_path / "detr.pth"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(content, file)
    with pytest.raises(CheckpointError, match=r"detr\.pth"):
        open_base(make_recipe("vpp", base=llava_directory, detector=file))


def test_a_prompted_base_keeps_its_detector(make_recipe: MakeRecipe, prompted: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="leave --detector out"):
        open_base(make_recipe("vpp", base=prompted, loc_head=True, detector=tmp_path / "detr.pth"))


@pytest.mark.parametrize("loc_head", [True, False], ids=["head", "text"])
def test_a_llava_gets_prompts_around_published_weights_of_detr(
    make_recipe: MakeRecipe, llava_directory: Path, data_folder: Path, tmp_path: Path, loc_head: bool
) -> None:
    """In the layout of DETR's own release, of which VPP-LLaVA's files hold a narrow one."""
    weights = load_file(data_folder / "golden" / "vpp" / "llava-vpp-tiny" / "model.safetensors")
    detr = {name.removeprefix(DETECTOR): tensor for name, tensor in weights.items() if name.startswith(DETECTOR)}
    detr |= {"class_embed.weight": torch.zeros(92, 256), "bbox_embed.layers.0.weight": torch.zeros(256, 256)}
    torch.save({"model": detr}, tmp_path / "detr.pth")
    recipe = make_recipe("vpp", base=llava_directory, detector=tmp_path / "detr.pth", loc_head=loc_head)
    model, spec = open_base(recipe)
    assert (spec.kind, spec.image.mode, spec.image_tokens) == ("head" if loc_head else "generator", "pad", 104)
    assert loc_head or (spec.prompt.template, spec.generation.grammar) == (TEMPLATE, GRAMMAR)
    queries = model.visual_prompts.detector.query_position_embeddings.weight
    torch.testing.assert_close(queries, detr["query_embed.weight"].float())
    torch.testing.assert_close(model.visual_prompts.axis.prompt.data, draw_axis(28))


def test_a_model_that_writes_gets_a_head(make_recipe: MakeRecipe, writing: Path) -> None:
    model, spec = open_base(make_recipe("vpp", base=writing, loc_head=True))
    assert spec.kind == "head"
    assert spec.prompt.template.endswith("[LOC]")
    assert (model.box_head is not None, spec.visual_prompts) == (True, SMALLEST_SHAPE)
