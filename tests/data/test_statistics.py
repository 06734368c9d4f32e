from referent.data.records import Record
from referent.data.statistics import Statistics


def test_counts_ranges_and_bins() -> None:
    statistics = Statistics()
    base = {"id": "1", "image": "a.jpg", "width": 100, "height": 50, "expression": "the red cup"}
    statistics.add(Record.model_validate(base | {"box_xyxy": (0, 0, 50, 50)}))
    statistics.add(Record.model_validate(base | {"width": 3000, "expression": "cup"}))
    summary = statistics.summary()
    assert (summary["records"], summary["absent"], summary["absent_share"]) == (2, 1, 0.5)
    assert summary["image_width_px"] == {"min": 100, "mean": 1550, "max": 3000}
    assert summary["image_longer_side_px"] == {"<=128": 1, ">2048": 1}
    assert summary["box_area_shares"] == {"<=0.5": 1}
    assert summary["expression_words"] == {"min": 1, "mean": 2, "max": 3}


def test_nothing_has_no_range() -> None:
    assert Statistics().summary()["box_area_share"] is None


def test_records_are_counted_by_kind_and_by_the_number_of_objects_that_they_mean() -> None:
    statistics, box = Statistics(), (0, 0, 5, 5)
    base = {"id": "1", "image": "a.jpg", "width": 100, "height": 50, "expression": "cups"}
    shown = [
        {},
        {"box_xyxy": box},
        {"points": ((1, 1), (2, 2))},
        *({"boxes_xyxy": (box,) * count} for count in (1, 3, 6, 40)),
    ]
    for fields, kind in zip(shown, ("none", "name", "plural", "plural", "plural", "group", "group"), strict=True):
        statistics.add(Record.model_validate(base | fields | {"tags": {"kind": kind}}))
    summary = statistics.summary()
    assert summary["referents"] == {"0": 1, "1": 2, "2": 1, "3": 1, "6 or more": 2}
    assert summary["kinds"] == {"plural": 3, "group": 2, "none": 1, "name": 1}
    assert (summary["with_box"], summary["absent"]) == (5, 1)
