"""Labels of detectors in COCO, VOC and CSV files, and what is said of them."""

import json
from pathlib import Path

from referent.data.records import Record

DOGS, CAT = [(10, 40, 30, 60), (90, 40, 110, 60), (150, 40, 170, 60)], (60, 5, 80, 20)
VOC = """<annotation><filename>wide.jpg</filename><size><width>200</width><height>100</height><depth>3</depth></size>
{}</annotation>"""
VOC_OBJECT = """<object><name>{}</name><difficult>0</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax>
<ymax>{}</ymax></bndbox></object>"""


def write(tmp_path: Path, format: str, things: list[tuple[str, tuple]], width: int = 200, height: int = 100) -> Path:
    names = ["bird", "cat", "dog"]
    if format == "coco":
        annotations = [
            {"id": i, "image_id": 1, "category_id": names.index(name), "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": 0}
            for i, (name, (x1, y1, x2, y2)) in enumerate(things)
        ]
        image = {"id": 1, "file_name": "wide.jpg", "width": width, "height": height}
        content = {"images": [image], "annotations": annotations,
                   "categories": [{"id": i, "name": name} for i, name in enumerate(names)]}  # fmt: skip
        file = tmp_path / "instances_train2014.json"
        file.write_text(json.dumps(content))
        return file
    if format == "voc":
        folder = tmp_path / "Annotations"
        folder.mkdir()
        objects = [VOC_OBJECT.format(name, x1 + 1, y1 + 1, x2, y2) for name, (x1, y1, x2, y2) in things]
        (folder / "wide.xml").write_text(VOC.format("".join(objects)))
        (folder / "other.xml").write_text(VOC.replace("wide", "tall").format(VOC_OBJECT.format("bird", 1, 1, 9, 9)))
        return tmp_path
    file = tmp_path / "labels.csv"
    rows = [f"wide.jpg,{width},{height},{name},{','.join(map(str, box))}" for name, box in things]
    file.write_text("\n".join(["filename,width,height,class,xmin,ymin,xmax,ymax", *rows]))
    return file


def scene(annotations: list[object], categories: dict[int, object] | None = None) -> dict:
    """Twenty images, all with a dog, and what is annotated besides."""
    names = {1: "dog", 2: "cat", 3: "bird"} if categories is None else categories
    dogs = [{"id": n, "image_id": n, "category_id": 1, "bbox": [10, 40, 30, 30]} for n in range(20)]
    birds = [{"id": 100 + n, "image_id": n, "category_id": 3, "bbox": [90, 40, 30, 30]} for n in range(0, 20, 2)]
    return {
        "images": [{"id": n, "file_name": f"{n}.jpg", "width": 200, "height": 100} for n in range(20)],
        "categories": [{"id": id, "name": name} for id, name in names.items()],
        "annotations": [*dogs, *birds, *annotations],
    }


def absent(items: list, *images: str) -> set[str]:
    """What is said not to be in the images, or in any."""
    records = [item for item in items if isinstance(item, Record) and not item.present]
    named = [record for record in records if not images or record.image in images]
    return {record.expression.removeprefix("find ").removeprefix("the ") for record in named}


COCO_CAT: dict = {"id": 900, "image_id": 7, "category_id": 2, "bbox": [60, 10, 30, 30]}


HEADING = "filename,width,height,class,xmin,ymin,xmax,ymax"


def csv_of(*rows: str, heading: str = HEADING, end: str = "\n") -> str:
    dogs = [f"{n}.jpg,200,100,dog,10,40,40,70" for n in range(20)]
    birds = [f"{n}.jpg,200,100,bird,90,40,120,70" for n in range(0, 20, 2)]
    return "\n".join([heading, *dogs, *birds, "1.jpg,200,100,cat,60,10,90,40", *rows]) + end
