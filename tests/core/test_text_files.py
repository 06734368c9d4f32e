from pathlib import Path

import pytest

from referent.core.text_files import TextFileError, numbered_lines, read_lines, read_table


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
def test_a_byte_order_mark_says_the_encoding(tmp_path: Path, encoding: str) -> None:
    mark = "\ufeff" if encoding == "utf-16-le" else ""
    (tmp_path / "a.txt").write_bytes(f"{mark}café\n\r\n \nzwei\u2028drei".encode(encoding))
    assert read_lines(tmp_path / "a.txt") == ["café\n", "\r\n", " \n", "zwei\u2028drei"]
    assert list(numbered_lines(tmp_path / "a.txt")) == [(1, "café\n".encode()), (4, "zwei\u2028drei".encode())]


@pytest.mark.parametrize(
    ("content", "line"),
    [(b"a\nb\ncaf\xe9\n", 3), (b"\xe9", 1), ("a\n".encode("utf-16") + b"x", 2)],
    ids=["third line", "first line", "half a letter of UTF-16"],
)
def test_another_encoding_is_refused_with_its_line(tmp_path: Path, content: bytes, line: int) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(TextFileError, match=rf"a\.txt:{line}: not UTF-8 text.*save the file as UTF-8"):
        read_lines(tmp_path / "a.txt")


def test_rows_of_a_table_know_their_lines(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('\na; b\n;\n"two\nlines";2 \r\n3; "4"')
    delimiter, rows = read_table(tmp_path / "a.csv")
    assert delimiter == ";"
    assert [(line, cells) for line, cells, _ in rows] == [(2, ["a", "b"]), (5, ["two\nlines", "2"]), (6, ["3", "4"])]


@pytest.mark.parametrize("fault", ['"open', '"a"b,c', "x" * 140_000])
def test_a_row_that_is_no_csv_is_refused_with_its_line(tmp_path: Path, fault: str) -> None:
    (tmp_path / "a.csv").write_text(f"a,b\n1,2\n{fault}\n3,4\n")
    with pytest.raises(TextFileError, match=r"a\.csv:3: "):
        list(read_table(tmp_path / "a.csv")[1])
