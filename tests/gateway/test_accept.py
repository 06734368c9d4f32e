import pytest

from gateway.accept import NotAcceptableError, preferred

JSON, PNG = "application/json", "image/png"


@pytest.mark.parametrize(
    ("accept", "answer"),
    [
        ("", JSON),
        ("*/*", JSON),
        ("image/png", PNG),
        ("image/*", PNG),
        ("IMAGE/PNG", PNG),
        ("text/html", JSON),
        ("image/png, application/json", PNG),
        ("application/json, image/png", JSON),
        ("image/png;q=0", JSON),
        ("image/png;q=0.5, application/json", JSON),
        ("application/json;q=0.5, image/png", PNG),
        ("application/json;q=0.5, image/png ; Q=0.6", PNG),
        ("image/png, */*", PNG),
        ("*/*;q=0.9, image/png;q=0.1", JSON),
        ("*/*, image/png;q=0.1", JSON),
        ("image/*;q=1, image/png;q=0", JSON),
        ("image/avif,image/webp,image/*,*/*;q=0.8", PNG),
        ("application/json;charset=utf-8;q=0.2, image/png;q=0.3", PNG),
        ("application/json;q=x, image/png;q=0.1", PNG),
        ("image/png;q=5, application/json", PNG),
        (",, ;q=1, /", JSON),
        ("application/json;q=0, image/png", PNG),
    ],
)
def test_what_is_liked_best_comes(accept: str, answer: str) -> None:
    assert preferred(accept, (JSON, PNG)) == answer


@pytest.mark.parametrize("accept", ["application/json;q=0", "*/*;q=0", "application/*;q=0, image/*;q=0.0", "*/*;q=-1"])
def test_what_is_excluded_never_comes(accept: str) -> None:
    with pytest.raises(NotAcceptableError, match="accept one of them"):
        preferred(accept, (JSON, PNG))
