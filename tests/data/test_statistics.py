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
