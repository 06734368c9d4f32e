"""Lists of images that referent batch reads, in all the ways in which people write them."""

from pathlib import Path

import pytest

from referent.client.batch import BatchItem, read_items


def item(name: object, *expressions: str) -> BatchItem:
    return BatchItem(str(name), expressions)


def test_lists_name_images_and_what_to_look_for(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one.jpg\n\nhttps://images.example.org/two.jpg\none.jpg\n")
    (tmp_path / "a.csv").write_text('image,expression,note\none.jpg,"the cup, left",x\none.jpg,,y\n')
    (tmp_path / "a.jsonl").write_text('{"image": "/one.jpg", "expressions": ["a", "b"]}\n{"image": "two.jpg"}\n')
    one = tmp_path / "one.jpg"
    assert read_items(tmp_path / "a.txt", ["q"]) == [item(one, "q"), item("https://images.example.org/two.jpg", "q")]
    assert read_items(tmp_path / "a.csv", ["q"]) == [item(one, "the cup, left"), item(one, "q")]
    assert read_items(tmp_path / "a.jsonl", ["q"]) == [item("/one.jpg", "a", "b"), item(tmp_path / "two.jpg", "q")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '\n{"images": 1}\n', "a.jsonl:2: image"),
        ("a.csv", "photo\na.jpg\n", "a.csv:1: no column image in 'photo'"),
        ("a.jsonl", '{"image": ""}\n', "a.jsonl:1: image"),
        ("a.txt", "a.jpg\n", "nothing to look for in a.jpg"),
        ("a.txt", "\n", "has no images"),
        ("a.tsv", "a.jpg\n", "neither a folder"),
    ],
)
def test_a_list_that_cannot_be_used_is_told(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_items(tmp_path / name, [])


CSV_AS_MEANT = {
    "spaces after commas": "image, expression\na.jpg, the cup\n",
    "capitals and spaces": " Image ,EXPRESSION \n a.jpg ,the cup \n",
    "expressions": "image,expressions\na.jpg,the cup\n",
    "other names": "file_name,prompt\na.jpg,the cup\n",
    "the other way round": "text;path\nthe cup;a.jpg\n",
    "semicolons": "image;expression\na.jpg;the cup\n",
    "tabs": "image\texpression\na.jpg\tthe cup\n",
    "blank rows": "\nimage,expression\n\n,\na.jpg,the cup\n , \n",
    "a mark of UTF-8": "\ufeffimage,expression\na.jpg,the cup\n",
    "line ends of Windows": "image,expression\r\na.jpg,the cup\r\n",
    "line ends of old": "image,expression\ra.jpg,the cup\r",
    "quotation marks": '"image","expression"\n"a.jpg", "the cup"\n',
    "more columns": "id,image,label,expression\n7,a.jpg,x,the cup\n",
}


@pytest.mark.parametrize("kind", CSV_AS_MEANT)
def test_a_csv_list_is_read_as_it_is_meant(tmp_path: Path, kind: str) -> None:
    (tmp_path / "list.CSV").write_bytes(CSV_AS_MEANT[kind].encode())
    assert read_items(tmp_path / "list.CSV", ["q"]) == [item(tmp_path / "a.jpg", "the cup")]


def test_commas_without_quotation_marks_stay_in_the_expression(tmp_path: Path) -> None:
    rows = 'image,expression\na.jpg,the cup, left of the jug\nb.jpg,1,000 cups,\nc.jpg,"a, b"\nd.jpg,,\ne.jpg,a cup,,\n'
    (tmp_path / "a.csv").write_text(rows)
    asked = [expressions for _, expressions in read_items(tmp_path / "a.csv", ["q"])]
    assert asked == [("the cup, left of the jug",), ("1,000 cups",), ("a, b",), ("q",), ("a cup",)]


def test_utf_16_is_read_by_its_mark(tmp_path: Path) -> None:
    for name, content in {
        "a.csv": "image,expression\na.jpg,café\n",
        "a.jsonl": '{"image": "a.jpg", "expressions": ["café"]}\n',
    }.items():
        for encoding in ("utf-16", "utf-8-sig"):
            (tmp_path / name).write_bytes(content.encode(encoding))
            assert read_items(tmp_path / name, []) == [item(tmp_path / "a.jpg", "café")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("expression,image\nthe cup\n", "list.csv:2: no image in this row"),
        ("image,expression\n,the cup\n", "list.csv:2: no image in this row"),
        ("expression,image\nthe cup, left,a.jpg\n", "list.csv:2: more cells than the 2 columns"),
        ("image,expression\na, b.jpg,the cup\n", "list.csv:2: more cells"),
        ('image,expression\na.jpg,"the cup" , left\n', "list.csv:2: .*quotation mark"),
        ('image,expression\na.jpg,"the cup\nb.jpg,x\n', "list.csv:2: .*quotation mark"),
        ("image,expression\na.jpg,x\nb.jpg," + "x" * 140_000, "list.csv:3: field larger"),
        ("image,expression\na.jpg,caf\udce9\n", "list.csv:2: not UTF-8 text"),
        ("image,text,prompt\na.jpg,x,y\n", "list.csv:1: text or prompt"),
        ("image,expression,image\na.jpg,x,b.jpg\n", "list.csv:1: 2 columns are called image"),
        ("a.jpg,the cup\n", "list.csv:1: no column image in 'a.jpg,the cup'"),
        ("", "list.csv:1: no column image"),
    ],
)
def test_a_csv_list_that_may_mean_something_else_is_refused_with_its_line(
    tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "list.csv").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=message):
        read_items(tmp_path / "list.csv", ["q"])
