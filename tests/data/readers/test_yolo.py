"""YOLO data sets in the layouts that programs write."""

from pathlib import Path

import pytest
from PIL import Image

from referent.data.readers import AnnotationError, read
from referent.data.records import Record, Rejected

CUP, PLATE = "0 0.2 0.3 0.2 0.4", "1 0.7 0.55 0.4 0.7"
CUP_BOX = (20, 10, 60, 50)  # pixels of 200 x 100


def picture(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (200, 100)).save(file)


def labels(file: Path, *lines: str, encoding: str = "utf-8") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes("".join(f"{line}\n" for line in lines).encode(encoding))


def data_set(root: Path, *lines: str, config: str = "names: [cup, plate]\n", count: int = 20) -> Path:
    """Images that show a cup and, each, what the lines say."""
    for number in range(count):
        picture(root / f"images/{number}.jpg")
        labels(root / f"labels/{number}.txt", CUP, *lines)
    (root / "data.yaml").write_text(config)
    return root


def records(root: Path, annotations: Path | None = None) -> list[Record]:
    return [item for item in read("yolo", annotations or root, root) if isinstance(item, Record)]


def rejected(root: Path) -> list[str]:
    return [item.reason for item in read("yolo", root, root) if isinstance(item, Rejected)]


def said_of(found: list[Record], name: str) -> set[tuple | None]:
    return {item.box_xyxy and tuple(map(round, item.box_xyxy)) for item in found if item.expression.endswith(name)}


def absent(found: list[Record]) -> set[str]:
    return {item.expression.split()[-1] for item in found if not item.present}


def test_a_line_is_a_box_around_its_centre(tmp_path: Path) -> None:
    found = records(data_set(tmp_path))
    assert said_of(found, " cup") <= {CUP_BOX, None}
    assert absent(found) == {"plate"}
    assert (found[0].image, found[0].width, found[0].height) == ("images/0.jpg", 200, 100)


@pytest.mark.parametrize(
    "line", ["0 0.1 0.1 0.3 0.1 0.3 0.5 0.1 0.5", "0 0.1 0.1 0.3 0.3 0.2 0.5", "0.0 2e-1 .3 0.20 0.4"]
)
def test_polygons_and_other_ways_to_write_numbers_give_the_same_box(tmp_path: Path, line: str) -> None:
    picture(tmp_path / "images/a.jpg")
    labels(tmp_path / "labels/a.txt", line)
    (tmp_path / "classes.txt").write_text("cup\n")
    assert said_of(records(tmp_path), "cup") == {CUP_BOX}


@pytest.mark.parametrize("shape", ["[2, 3]", "[3, 2]"])
def test_points_of_poses_are_passed_by(tmp_path: Path, shape: str) -> None:
    picture(tmp_path / "images/a.jpg")
    labels(tmp_path / "labels/a.txt", f"{CUP} 0.1 0.1 2 0.9 0.9 0")
    (tmp_path / "data.yaml").write_text(f"names: [cup]\nkpt_shape: {shape}\n")
    assert said_of(records(tmp_path), "cup") == {CUP_BOX}


LAYOUTS = {
    "ultralytics": ("images/val/a.jpg", "labels/val/a.txt", "path: .\nval: images/val\nnames: {0: cup, 1: plate}"),
    "roboflow": ("valid/images/a.jpg", "valid/labels/a.txt", "val: ../valid/images\nnames: ['cup', 'plate']"),
    "list of images": ("data/a.jpg", "data/a.txt", "val: val.txt\nnames: [cup, plate]"),
    "path of another machine": ("images/val/a.jpg", "labels/val/a.txt", "path: /gone\nval: v\nnames: [cup, plate]"),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_labels_and_splits_are_found_where_programs_put_them(tmp_path: Path, layout: str) -> None:
    image, text, config = LAYOUTS[layout]
    picture(tmp_path / image)
    labels(tmp_path / text, CUP)
    (tmp_path / "data.yaml").write_text(config)
    (tmp_path / "val.txt").write_text(f"./{image}\n")
    found = records(tmp_path, tmp_path / "data.yaml")
    assert {(item.image, item.split) for item in found} == {(image, "val")}


@pytest.mark.parametrize("name", ["classes.txt", "obj.names", "_darknet.labels"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_names_may_stand_in_a_file_of_their_own(tmp_path: Path, name: str, encoding: str) -> None:
    picture(tmp_path / "a.jpg")
    labels(tmp_path / "a.txt", CUP, "", " ", encoding=encoding)
    labels(tmp_path / name, "cup", "plate", encoding=encoding)
    assert said_of(records(tmp_path), "cup") == {CUP_BOX}


@pytest.mark.parametrize(
    "line",
    [
        "1 0.7 0.55 0.4", "1 0.7 0.55 0.4 wide", "1 0.7 0.55 0.4 nan", "1 0.7 0.55 0 0", "1 140 55 80 70", "1",
        "1 0.7 0.55 0.4 0.7 0.98", "7 0.7 0.55 0.4 0.7", "plate 0.7 0.55 0.4 0.7", "1.5 0.7 0.55 0.4 0.7", "nan",
        "1,0.7,0.55,0.4,0.7", "1e999 0 0 0 0",
    ],
)  # fmt: skip
def test_a_label_that_cannot_be_read_is_never_an_absence(tmp_path: Path, line: str) -> None:
    root = data_set(tmp_path, line)
    assert len(rejected(root)) == 20
    found = records(root)
    assert len({item.image for item in found}) == 20
    assert not absent(found)


def test_a_file_of_labels_that_is_cut_off_leaves_its_image_out(tmp_path: Path) -> None:
    root = data_set(tmp_path)
    (root / "labels/3.txt").write_text(f"{CUP}\n{CUP}\n1 0.7 0.5")
    (root / "labels/4.txt").write_text(f"{CUP}\n{PLATE}")
    assert rejected(root) == ["file of labels is cut off, or its last line is wrong"]
    assert {item.image for item in records(root)} == {f"images/{n}.jpg" for n in range(20) if n != 3}


@pytest.mark.parametrize(
    ("names", "name"), [("[yes, no]", "yes"), ("{0: 007}", "007"), ("[2024-13-01]", "2024-13-01"), ("[1.50]", "1.50")]
)
def test_names_of_classes_stay_as_they_are_written(tmp_path: Path, names: str, name: str) -> None:
    root = data_set(tmp_path, config=f"date: 2024-13-01\nnames: {names}\n", count=1)
    assert {item.expression.split()[-1] for item in records(root) if item.present} == {name}


def test_an_image_that_is_a_link_has_the_split_of_its_place(tmp_path: Path) -> None:
    root = tmp_path / "root"
    picture(root / "pool/a.jpg")
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cup, plate]\n")
    for split in ("train", "val"):
        (root / f"images/{split}").mkdir(parents=True)
        (root / f"images/{split}/a.jpg").symlink_to(root / "pool/a.jpg")
        labels(root / f"labels/{split}/a.txt", CUP)
    found = {item.image: item.split for item in records(root)}
    assert found == {"images/train/a.jpg": "train", "images/val/a.jpg": "val"}


def test_folders_above_the_data_set_name_no_split(tmp_path: Path) -> None:
    root = data_set(tmp_path / "test/mine", count=1)
    assert {item.split for item in records(root)} == {"train"}


def test_an_image_without_labels_says_nothing_and_an_empty_file_says_that_nothing_is_there(tmp_path: Path) -> None:
    root = data_set(tmp_path)
    for number in range(20):
        picture(root / f"images/unlabelled-{number}.jpg")
        picture(root / f"images/empty-{number}.jpg")
        labels(root / f"labels/empty-{number}.txt")
    found = records(root)
    assert not [item for item in found if item.image.startswith("images/unlabelled")]
    assert absent([item for item in found if item.image.startswith("images/empty")]) <= {"cup", "plate"}
    assert rejected(root).count("image without a file of labels") == 20


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    elsewhere = data_set(tmp_path / "elsewhere", count=3)
    root = tmp_path / "root"
    root.mkdir()
    for name in ("images", "labels", "data.yaml"):
        (root / name).symlink_to(elsewhere / name)
    (root / "root").symlink_to(root)
    assert {item.image for item in records(root)} == {f"images/{number}.jpg" for number in range(3)}


def test_labels_without_an_image_are_counted(tmp_path: Path) -> None:
    root = data_set(tmp_path)
    labels(root / "labels/lost.txt", CUP)
    (root / "images/odd.bmp").write_bytes(b"BM")
    labels(root / "labels/odd.txt", CUP)
    assert [reason.partition(" (")[0] for reason in rejected(root)] == ["labels without an image"] * 2


@pytest.mark.parametrize("name", ["''", "'  '", '"gar\ufffdon"', "[a]"])
def test_a_class_without_a_readable_name_is_said_of_nothing(tmp_path: Path, name: str) -> None:
    root = data_set(tmp_path, PLATE, config=f"names:\n- cup\n- {name}\n- bird\n")
    assert rejected(root) == ["label without a name that can be read"]
    found = records(root)
    assert {item.expression.split()[-1] for item in found} == {"cup"}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "has no names of classes: a YAML file with `names`, or one of classes.txt"),
        ({"data.yaml": "names: [cup"}, "data.yaml is not YAML"),
        ({"data.yaml": "names: cup"}, "`names` is neither"),
        ({"data.yaml": "names: [cup]\nkpt_shape: 5"}, "`kpt_shape` is not"),
        ({"data.yaml": "names: {0: cup, 0: plate}"}, "data.yaml is not YAML: key 0 occurs twice: keep one .*line 1"),
        ({"data.yaml": f"names: {'[' * 3_000}"}, "data.yaml is not YAML"),
        ({"data.yaml": "[]"}, "no names of classes"),
    ],
)
def test_what_is_no_data_set_stops_with_what_lacks(tmp_path: Path, files: dict[str, str], message: str) -> None:
    picture(tmp_path / "images/a.jpg")
    labels(tmp_path / "labels/a.txt", CUP)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(AnnotationError, match=message):
        records(tmp_path)


def test_a_file_of_labels_or_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    root = data_set(tmp_path / "data", count=1)
    with pytest.raises(AnnotationError, match=r"0\.txt is not a YAML file: give data\.yaml"):
        list(read("yolo", root / "labels/0.txt", root))
    with pytest.raises(AnnotationError, match="holds no images"):
        list(read("yolo", root, root / "labels"))
