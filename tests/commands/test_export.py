from pathlib import Path

from tests.support.commands import run


def test_help_is_that_of_the_module() -> None:
    code, output, _ = run("export", "--help")
    assert (code, output.split()[:3]) == (0, ["usage:", "referent", "export"])
    assert {"--name", "--weights", "--work"} <= {*output.replace("]", " ").replace("[", " ").split()}


def test_what_the_module_refuses_the_command_refuses(tmp_path: Path) -> None:
    both = ("--int8", "train.jsonl", "--images", "images")
    for given, said in (
        (("--name", "No Name"), "must match"),
        (("--name", "a", "--weights", "int2"), "invalid choice: 'int2'"),
        (("--name", "a", "--max-batch-size", "0"), "--max-batch-size is 0: give 1 or more"),
        (("--name", "a", "--int8", "train.jsonl"), "--int8 RECORDS and --images FOLDER belong together"),
        (("--name", "a", *both, "--dtype", "fp16"), "--int8 starts from fp32"),
        (("--name", "a", *both, "--weights", "int4"), "--int8 starts from fp32"),
    ):
        code, _, errors = run("export", tmp_path, *given)
        assert (code, said in errors) == (2, True)
