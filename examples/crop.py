"""Cuts out what the words refer to: one picture for each referent.

python examples/crop.py PICTURE EXPRESSION... --out FOLDER
"""

import argparse
from pathlib import Path

from PIL import Image, ImageOps

from referent import Client


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path)
    parser.add_argument("expressions", nargs="+")
    parser.add_argument("--out", type=Path, default=Path("crops"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with Client() as client:
        answer = client.ground(arguments.picture, arguments.expressions)
    with Image.open(arguments.picture) as opened:
        picture = ImageOps.exif_transpose(opened)  # boxes are of the picture as a viewer shows it
    for result in answer.results:
        if not result.referents:
            print(f"{result.expression}: not there")
        for number, referent in enumerate(result.referents, 1):
            if referent.box_xyxy is None:
                continue  # a point has no extent to cut out
            file = arguments.out / f"{arguments.picture.stem}-{result.expression.replace(' ', '_')}-{number}.png"
            picture.crop(tuple(round(value) for value in referent.box_xyxy)).save(file)
            print(f"{result.expression}: {file}")


if __name__ == "__main__":
    main()
