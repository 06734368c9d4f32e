import pytest

from referent.evaluation.analysis import analyse, bias_audit, failures, latency, worst_and_best
from tests.support.scored import BOX, FAR, HALF, record, results

LONG = "the small red cup on the left"


def test_audit_groups_by_area_words_and_aspect() -> None:
    audit = bias_audit(
        results(
            (record("a", (0, 0, 20, 20)), {"box_xyxy": (0, 0, 20, 20)}),
            (record("b", (0, 0, 10, 50), expression="the red cup left"), {"box_xyxy": (0, 0, 10, 25)}),
            (record("c", (0, 0, 50, 40), expression=LONG), None),
            (record("d", None), {"box_xyxy": BOX}),
        )
    )
    assert {name: row["n"] for name, row in audit["area"].items()} == {"small": 1, "medium": 1, "large": 1}
    assert audit["area"]["medium"]["mean"] == 0.5  # .05 itself is medium, .20 large
    assert {name: row["mean"] for name, row in audit["words"].items()} == {"1-3": 1, "4-6": 0.5, "7+": 0}
    assert {name: row["n"] for name, row in audit["aspect"].items()} == {"tall": 1, "square": 2}
    assert audit["aspect"]["square"] == {"n": 2, "mean": 0.5, "median": 0.5, "std": 0.5}


@pytest.mark.parametrize(
    ("true", "predicted", "expression", "kind"),
    [
        (BOX, BOX, LONG, None),
        (BOX, HALF, LONG, None),
        (None, FAR, "the cup", None),
        (BOX, None, LONG, "no valid box"),
        ((10, 10, 20, 20), FAR, LONG, "small object"),
        (BOX, (15, 15, 25, 25), LONG, "right place, wrong scale"),
        (BOX, FAR, LONG, "wrong location"),
        (BOX, (19, 10, 39, 30), LONG, "complex expression"),
        (BOX, (19, 10, 39, 30), "the cup", "ambiguous"),
    ],
    ids=["right", "just right", "absent", "invalid", "small", "scale", "location", "complex", "ambiguous"],
)
def test_failures_have_the_first_kind_that_fits(
    true: tuple | None, predicted: tuple | None, expression: str, kind: str | None
) -> None:
    assert failures(results((record("a", true, expression=expression), {"box_xyxy": predicted}))) == [kind]


def test_worst_and_best_leave_out_absent_objects() -> None:
    boxes = {"a": BOX, "b": FAR, "c": HALF}
    pairs = [(record(id), {"box_xyxy": box}) for id, box in boxes.items()]
    worst, best = worst_and_best(results((record("absent", None), {"box_xyxy": BOX}), *pairs), worst=2, best=2)
    assert (worst, best) == ([2, 3], [1, 3])


def test_latency_counts_a_request_once() -> None:
    pairs = [(record(str(i), image=f"{i // 4}.jpg"), {"box_xyxy": BOX, "ms": 10.0 + i // 4}) for i in range(12)]
    assert latency(results(*pairs)) == {"n": 3, "mean": 11, "p50": 11, "p95": pytest.approx(11.9)}
    assert latency(results((record("a"), {"box_xyxy": BOX}))) == {}


def test_analysis_has_what_the_records_have() -> None:
    boxed = analyse(results((record("a"), {"box_xyxy": BOX}), (record("b"), None)))
    assert {"summary", "intervals", "groups", "baselines", "curve", "audit", "failures"} == set(boxed)
    assert boxed["curve"]["0.50"] == boxed["summary"]["acc@0.5"] == 0.5
    assert boxed["failures"] == {"no valid box": 1}
    pointed = analyse(results((record("a", None, points=((1, 1),)), {"points": ((1, 1),)})))
    assert set(pointed) == {"summary", "points", "point_vlm"}
