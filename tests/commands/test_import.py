"""referent import, and what all commands say of a checkpoint that is not whole."""

import json
from pathlib import Path
from shutil import copyfile, copytree, ignore_patterns

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from referent.commands.app import app
from referent.data.records import write_records
from tests.support.scored import record


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "200"})
    return result.exit_code, result.stdout, result.stderr


def lose_a_layer(base: Path) -> None:
    """Of a LLaVA directory of two layers or more."""
    weights = load_file(base / "model.safetensors")
    fewer = {name: tensor for name, tensor in weights.items() if "layers.1.mlp.up_proj" not in name}
    assert len(fewer) < len(weights)
    save_file(fewer, base / "model.safetensors", {"format": "pt"})


def assert_refused(folder: Path, base: Path, *arguments: object) -> None:
    """Exit status 1, one line that names the base and what it lacks, and nothing new in the folder."""
    before = sorted(folder.rglob("*"))
    code, output, errors = run(*arguments)
    assert code == 1
    [told] = [line for line in (output + errors).splitlines() if "lacks" in line]
    assert str(base) in told
    assert "layers.1.mlp.up_proj" in told
    assert "Traceback" not in errors
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("command", ["export", "evaluate", "train"])
def test_a_base_that_lacks_weights_is_refused(command: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    damaged, data, out = tmp_path / "damaged", tmp_path / "data", tmp_path / "out"
    copytree(tiny_checkpoint, damaged, ignore=ignore_patterns("adapter"))
    spec = json.loads((damaged / "referent.json").read_text())
    (damaged / "referent.json").write_text(json.dumps(spec | {"base": "base", "adapter": False}))
    lose_a_layer(damaged / "base")
    data.mkdir()
    Image.new("RGB", (100, 100)).save(data / "0.jpg")
    for split in ("train", "val"):
        write_records(data / f"{split}.jsonl", [record("1", image="0.jpg")])
    given = {
        "export": [damaged, "--name", "tiny", "--to", out],
        "evaluate": ["jsonl", "--annotations", data / "val.jsonl", "--images", data, "--checkpoint", damaged],
        "train": ["frozen", "--base", damaged, "--data", data, "--images", data, "--out", out],
    }[command]
    assert_refused(tmp_path, damaged / "base", command, *given)


def test_a_base_that_lacks_weights_is_not_imported_on(data_folder: Path, tmp_path: Path) -> None:
    golden, base = data_folder / "golden/vg", tmp_path / "base"
    copytree(golden / "base-llava-1.5-tiny-hf", base)
    lose_a_layer(base)
    given = [golden / "main/best.pth", "--base", base, "--out", tmp_path / "out"]
    assert_refused(tmp_path, base, "import", "visual-grounding", *given)


def test_import_says_what_the_figures_are_and_how_to_go_on(data_folder: Path, tmp_path: Path) -> None:
    golden = data_folder / "golden/vg"
    given = [golden / "ablation/best.pth", "--base", golden / "base-llava-1.5-tiny-hf"]
    code, output, errors = run("import", "visual-grounding", *given, "--out", tmp_path / "last")
    assert code == 0, errors
    assert "its own val set, read at left600: mean_iou 0.2816, rmse 0.2505, mae 0.1956" in output
    assert "reads the prompt's last token" in output
    assert f"referent export {tmp_path / 'last'} --name NAME" in output
    code, output, errors = run("import", "visual-grounding", *given, "--out", tmp_path / "left600", "--read", "left600")
    assert code == 0, errors
    assert "reads where training did" in output


def test_import_refuses_to_write_over_what_is_there(data_folder: Path, tmp_path: Path) -> None:
    golden = data_folder / "golden/vg"
    (tmp_path / "mine").write_text("mine")
    code, _, errors = run(
        "import", "visual-grounding", golden / "main/best.pth", "--base", golden / "base-llava-1.5-tiny-hf",
        "--out", tmp_path / "mine",
    )  # fmt: skip
    assert code == 1
    assert "is there already" in errors
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no config.json"),
        ({"config.json": '{"model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"]}'}, "ends in -hf"),
        ({"config.json": '{"model_type": "llava", "vision_config": {}, "text_config": {}}'}, "no tokenizer.json"),
    ],
    ids=["nothing", "the original layout", "no tokenizer"],
)
def test_import_says_what_is_wrong_with_a_base(
    data_folder: Path, tmp_path: Path, files: dict[str, str], message: str
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for name, content in files.items():
        (base / name).write_text(content)
    source = data_folder / "golden/vg/main/best.pth"
    code, _, errors = run("import", "visual-grounding", source, "--base", base, "--out", tmp_path / "out")
    assert code == 1
    [told] = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert str(base) in told
    assert message in told
    assert not (tmp_path / "out").exists()


def test_import_says_where_it_cannot_write(data_folder: Path, tmp_path: Path) -> None:
    golden = data_folder / "golden/vg"
    (tmp_path / "file").write_text("")
    given = [golden / "ablation/best.pth", "--base", golden / "base-llava-1.5-tiny-hf"]
    code, _, errors = run("import", "visual-grounding", *given, "--out", tmp_path / "file" / "out")
    assert code == 1
    assert f"error: [Errno 17] File exists: '{tmp_path / 'file'}'" in errors
    assert sorted(tmp_path.iterdir()) == [tmp_path / "file"]


@pytest.mark.parametrize("command", ["point-vlm", "paligemma"])
def test_import_of_paligemma_says_how_to_go_on(data_folder: Path, tmp_path: Path, command: str) -> None:
    golden = data_folder / "golden/pv"
    base, adapter = golden / "paligemma2-tiny-pt-224", golden / "point-vlm-tiny"
    given = [adapter, "--base", base] if command == "point-vlm" else [base, "--adapter", adapter]
    code, output, errors = run("import", command, *given, "--out", tmp_path / "out")
    assert code == 0, errors
    assert f"referent export {tmp_path / 'out'} --name NAME" in output
    assert ("always points" in output) == (command == "point-vlm")
    assert "its base is" not in output
    assert (tmp_path / "out" / "adapter").is_dir()


def test_a_paligemma_that_was_only_pretrained_is_told(data_folder: Path, tmp_path: Path) -> None:
    base = data_folder / "golden/pv/paligemma2-tiny-pt-224"
    code, output, errors = run("import", "paligemma", base, "--out", tmp_path / "out")
    assert code == 0, errors
    assert "only pre-trained" in output


@pytest.mark.parametrize("command", ["point-vlm", "paligemma"])
def test_another_name_of_the_base_is_told(data_folder: Path, tmp_path: Path, command: str) -> None:
    golden, adapter = data_folder / "golden/pv", tmp_path / "adapter"
    base = golden / "paligemma2-tiny-pt-224"
    copytree(golden / "point-vlm-tiny", adapter, copy_function=copyfile)
    adapter.chmod(0o755)
    config = json.loads((adapter / "adapter_config.json").read_text())
    name = {"base_model_name_or_path": "google/paligemma2-3b-mix-448"}
    (adapter / "adapter_config.json").write_text(json.dumps(config | name))
    given = [adapter, "--base", base] if command == "point-vlm" else [base, "--adapter", adapter]
    code, output, errors = run("import", command, *given, "--out", tmp_path / "out")
    assert code == 0, errors
    assert f"its base is paligemma2-3b-mix-448, and {base} was given" in output


@pytest.mark.parametrize("command", ["point-vlm", "paligemma"])
def test_import_of_paligemma_says_where_it_cannot_write(data_folder: Path, tmp_path: Path, command: str) -> None:
    golden = data_folder / "golden/pv"
    base, adapter = golden / "paligemma2-tiny-pt-224", golden / "point-vlm-tiny"
    (tmp_path / "file").write_text("")
    given = [adapter, "--base", base] if command == "point-vlm" else [base]
    code, _, errors = run("import", command, *given, "--out", tmp_path / "file" / "out")
    assert (code, "error: [Errno" in errors, "Traceback" in errors) == (1, True, False)


@pytest.mark.parametrize("command", ["point-vlm", "paligemma"])
def test_a_paligemma_that_lacks_weights_is_not_imported(data_folder: Path, tmp_path: Path, command: str) -> None:
    golden, base = data_folder / "golden/pv", tmp_path / "base"
    copytree(golden / "paligemma2-tiny-pt-224", base)
    lose_a_layer(base)
    given = [golden / "point-vlm-tiny", "--base", base] if command == "point-vlm" else [base]
    assert_refused(tmp_path, base, "import", command, *given, "--out", tmp_path / "out")


def test_import_of_vpp_llava_says_how_to_go_on(data_folder: Path, tmp_path: Path) -> None:
    golden = data_folder / "golden/vpp"
    given = [golden / "llava-vpp-tiny", "--clip", golden / "clip-stock-tiny-336", "--out", tmp_path / "vpp"]
    code, output, errors = run("import", "vpp-llava", *given)
    assert code == 0, errors
    assert f"referent export {tmp_path / 'vpp'} --name NAME" in output
    code, _, errors = run("import", "vpp-llava", *given)
    assert code == 1
    assert f"{tmp_path / 'vpp'} is there already" in errors


@pytest.mark.parametrize("damage", ["nothing there", "no file", "a layer lost", "its CLIP is not named"])
def test_import_of_vpp_llava_refuses_in_one_line(data_folder: Path, tmp_path: Path, damage: str) -> None:
    golden, source = data_folder / "golden/vpp", tmp_path / "source"
    if damage != "nothing there":
        copytree(golden / "llava-vpp-tiny", source)
    if damage == "no file":
        (source / "model.safetensors").unlink()
    if damage == "a layer lost":
        lose_a_layer(source)
    clip = [] if damage == "its CLIP is not named" else ["--clip", golden / "clip-stock-tiny-336"]
    code, _, errors = run("import", "vpp-llava", source, *clip, "--out", tmp_path / "out")
    assert code == 1
    [told] = [line for line in errors.splitlines() if line]
    assert str(source) in told
    assert not (tmp_path / "out").exists()
