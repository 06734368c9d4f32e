"""Reads the header Accept, as RFC 9110 defines it: which media type a caller prefers."""

from collections.abc import Iterator, Sequence

MAX_RANGES = 100  # read from a header; browsers send about ten


class NotAcceptableError(ValueError):
    """The caller excludes every media type that is offered."""


def preferred(accept: str, offered: Sequence[str]) -> str:
    """The offered media type with the greatest q; among equals, the one that is named more exactly, then earlier. If
    none is named, the first one offered. Raises `NotAcceptableError` if q=0 excludes that.
    """
    wishes: dict[str, tuple[float, int, int]] = {}  # q, how exactly named, how early
    for place, (pattern, weight) in enumerate(_ranges(accept)):
        for media_type in offered:
            kind = media_type.partition("/")[0]
            exactness = {media_type: 2, f"{kind}/*": 1, "*/*": 0}.get(pattern)
            if exactness is not None and exactness > wishes.get(media_type, (0, -1))[1]:
                wishes[media_type] = weight, exactness, -place
    wanted = [media_type for media_type in offered if wishes.get(media_type, (0,))[0] > 0]
    if wanted:
        return max(wanted, key=lambda media_type: wishes[media_type])
    if offered[0] in wishes:
        raise NotAcceptableError(f"Accept excludes {' and '.join(offered)}: accept one of them")
    return offered[0]


def _ranges(accept: str) -> Iterator[tuple[str, float]]:
    """Patterns such as image/* with their weight; patterns whose weight is not a number are left out."""
    for part in accept.split(",")[:MAX_RANGES]:
        pattern, *parameters = (piece.strip().lower() for piece in part.split(";"))
        weights = [parameter.removeprefix("q=") for parameter in parameters if parameter.startswith("q=")]
        try:
            yield pattern, min(max(float(weights[0]), 0.0), 1.0) if weights else 1.0
        except ValueError:
            continue
