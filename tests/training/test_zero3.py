import json
from pathlib import Path

import pytest
from accelerate.utils.deepspeed import HfDeepSpeedConfig
from transformers import TrainingArguments

FILE = Path(__file__).parents[2] / "runs" / "zero3.json"


def test_the_configuration_is_zero3_and_saves_whole_weights() -> None:
    config = HfDeepSpeedConfig(str(FILE))
    assert config.is_zero3()
    assert not config.is_offload()
    assert config.get_value("zero_optimization.stage3_gather_16bit_weights_on_model_save") is True


def test_trainer_fills_the_rest_in(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

    config = HfTrainerDeepSpeedConfig(json.loads(FILE.read_text()))
    arguments = TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=4, gradient_accumulation_steps=2, max_grad_norm=1.0,
        bf16=True, use_cpu=True,
    )  # fmt: skip
    config.trainer_config_process(arguments)
    assert config.get_value("train_batch_size") == 8
    assert config.get_value("gradient_clipping") == 1.0
