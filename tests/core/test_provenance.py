from pathlib import Path

from referent.core.provenance import digest_of


def test_a_folders_digest_tells_every_name_and_content_but_images(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below/a.txt").write_text("a")
    first = digest_of(tmp_path)
    (tmp_path / "photo.jpg").write_bytes(b"large")
    assert digest_of(tmp_path) == first
    (tmp_path / "below/a.txt").rename(tmp_path / "below/b.txt")
    renamed = digest_of(tmp_path)
    (tmp_path / "below/b.txt").write_text("b")
    assert len({first, renamed, digest_of(tmp_path)}) == 3
    assert digest_of(tmp_path / "below/b.txt").startswith("sha256:3e23e816")
