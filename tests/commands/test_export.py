import re
import subprocess
import sys
from pathlib import Path

from tests.support.commands import run


def test_the_command_has_the_options_of_the_module() -> None:
    module = subprocess.run([sys.executable, "-m", "export", "--help"], capture_output=True, text=True, check=True)
    code, output, _ = run("export", "--help")
    assert code == 0
    options = [set(re.findall(r"--[a-z0-9-]+", text)) - {"--help"} for text in (module.stdout, output)]
    assert options[0] == options[1] >= {"--name", "--weights", "--work"}


def test_what_the_module_refuses_the_command_refuses(tmp_path: Path) -> None:
    code, _, errors = run("export", tmp_path, "--name", "No Name")
    assert (code, "must match" in errors) == (2, True)
    code, _, errors = run("export", tmp_path, "--name", "a", "--max-batch-size", "0")
    assert (code, "--max-batch-size is 0: give 1 or more" in errors) == (2, True)
    code, _, errors = run("export", tmp_path, "--name", "a", "--weights", "int2")
    assert (code, "'int2' is not one of" in errors) == (2, True)
    code, _, errors = run("export", tmp_path, "--name", "a", "--int8", "train.jsonl")
    assert (code, "--int8 RECORDS and --images FOLDER belong together" in errors) == (2, True)
    both = ("--int8", "train.jsonl", "--images", "images")
    for option in (("--dtype", "fp16"), ("--weights", "int4")):
        code, _, errors = run("export", tmp_path, "--name", "a", *both, *option)
        assert (code, "--int8 starts from fp32" in errors) == (2, True)
