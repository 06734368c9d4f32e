"""A tiny LLaVA with its tokenizer and adapter: real components, random weights."""

import os
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from tests.support.tiny import SPECIAL_TOKENS, TINY_BUCKETS, TINY_IMAGE, TINY_IMAGE_TOKENS, TINY_PROMPT, WORDS

TESTS = Path(__file__).parent
TRITON = ("system", "runtime")  # folders of what starts the real tritonserver
# what exports or trains models, holds them against the code of other projects, or starts many interpreters
SLOW = (
    "training",
    "modeling",
    "export/test_export.py",
    "export/test_generator.py",
    "export/test_quantize.py",
    "export/test_restore.py",
    "benchmarks/test_seven_billion.py",
    "mini/test_pretrain.py",
    "commands/test_installation.py",
    "commands/test_export.py",
    "commands/test_wheel.py",
    "test_layers.py",
)
# what judges a service that is under load: of these, one at a time
UNDER_LOAD = (
    "system/test_faults.py", "system/test_scale.py", "system/test_healing.py", "system/test_damages.py",
    "runtime/test_launcher.py", "runtime/test_versions.py",
)  # fmt: skip
FIRST = (*UNDER_LOAD, *TRITON, *SLOW)  # the longest, so that processes end together


def pytest_configure() -> None:
    """A thread a process: small models gain nothing from more, and processes would wait for each other."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks what `make test-fast` leaves out; of several processes, the longest files come first."""
    places = {item: item.path.relative_to(TESTS).as_posix() for item in items}
    for item, place in places.items():
        if place.startswith(TRITON):
            item.add_marker("triton")
        if place.startswith(SLOW):
            item.add_marker("slow")
    if hasattr(config, "workerinput"):  # one of several processes
        items.sort(key=lambda item: next((i for i, s in enumerate(FIRST) if places[item].startswith(s)), len(FIRST)))


@pytest.hookimpl(optionalhook=True)  # not every environment has xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """One process runs a file: its tests share a service, and some need what those before did. The files under load
    are one unit. (`--dist loadgroup` of xdist 3.8 does not group with pytest 9.2: it renames tests in vain.)"""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "under load" if file.endswith(UNDER_LOAD) else file

    return Scheduling(config, log)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Published data that isn't the project's to ship."""
    if "REFERENT_TEST_DATA" not in os.environ:
        pytest.skip("REFERENT_TEST_DATA names no folder of published data")
    return Path(os.environ["REFERENT_TEST_DATA"])


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    alphabet = sorted({c for word in WORDS for c in word} | set("<>[]0123456789.,"))
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=SPECIAL_TOKENS, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(WORDS * 5, trainer)
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(file))
    return file


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory, tokenizer_file: Path) -> Path:
    """Base, LoRA adapter with weights that matter, [LOC] embedding, head."""
    import torch
    from peft import get_peft_model
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    from referent.modeling.checkpoint import CheckpointSpec, save_checkpoint
    from referent.modeling.grounding import GroundingModel
    from referent.modeling.heads import BoxHead
    from referent.modeling.llava import lora_config

    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    text = LlamaConfig(
        vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128,
    )  # fmt: skip
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=3)
    directory = tmp_path_factory.mktemp("checkpoint")
    model = GroundingModel(LlavaForConditionalGeneration(config).eval(), BoxHead(64)).eval()
    for name, parameter in model.named_parameters():  # the default initialisation is too small to tell inputs apart
        if parameter.ndim > 1 and "box_head" not in name:
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    spec = CheckpointSpec(
        image=TINY_IMAGE, image_tokens=TINY_IMAGE_TOKENS, box_frame="transformed", prompt=TINY_PROMPT,
        buckets=TINY_BUCKETS, present_threshold=0.5, base="base",
    )  # fmt: skip
    save_checkpoint(directory, model, spec, tokenizer_file)
    model.llava = get_peft_model(model.llava, lora_config([TINY_PROMPT.loc_token_id]))
    for parameter in model.llava.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    save_checkpoint(directory, model, spec.model_copy(update={"base": str(directory / "base")}), tokenizer_file)
    return directory
