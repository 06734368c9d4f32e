from benchmarks.seven_billion import verdicts


def measured(path: str, batch: int, expressions: int, ms: float) -> dict[str, object]:
    return {"path": path, "batch": batch, "expressions": expressions, "p50": ms, "images/s": 1000 * batch / ms}


def test_each_way_to_run_the_model_is_held_against_the_goals() -> None:
    rows = [measured("ONNX Runtime", *case) for case in ((1, 1, 20), (4, 1, 60), (1, 8, 32))]
    found = verdicts(
        [*rows, measured("ONNX Runtime, vision_encoder", 1, 1, 2), measured("Triton ensemble, gRPC", 1, 1, 9)]
    )
    assert [(row["what"], round(row["found"], 2), row["met"]) for row in found] == [
        ("ms, batch 1", 20, "falls short"),
        ("images/s", 66.67, "pass"),
        ("8 expressions against 8 passes", 5, "pass"),
    ]
