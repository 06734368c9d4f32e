"""Which pictures of a folder show it? The best come first.

python examples/search.py FOLDER EXPRESSION
"""

import argparse
from pathlib import Path

from referent import Client, Grounding


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("expression")
    arguments = parser.parse_args()
    pictures = sorted(file for file in arguments.folder.iterdir() if file.suffix.lower() in (".jpg", ".jpeg", ".png"))
    found: list[tuple[float, Path]] = []
    with Client() as client:
        asked = ((picture, [arguments.expression]) for picture in pictures)
        for picture, answer in zip(pictures, client.ground_many(asked, concurrency=4), strict=True):
            if not isinstance(answer, Grounding):
                print(f"{picture}: {answer}")
            elif answer.results[0].referents:
                found.append((answer.results[0].score or 0.0, picture))
    for score, picture in sorted(found, reverse=True):
        print(f"{score:.2f} {picture}")
    print(f"{len(found)} of {len(pictures)} pictures show {arguments.expression}")


if __name__ == "__main__":
    main()
