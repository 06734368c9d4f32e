"""Sample pictures that ship with the project: scenes of the generator, in one freely licensed style, with their boxes.

python -m referent.mini.samples artwork.npz tests/samples
"""

import argparse
import json
import random
from collections import Counter
from pathlib import Path

from referent.mini.artwork import load_artwork
from referent.mini.scenes import Materials, make_scene

STYLE = "noto"  # Noto Color Emoji, SIL Open Font License 1.1
SAMPLES = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artwork", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    materials = Materials(load_artwork(arguments.artwork), [], [])
    cases: list[dict[str, object]] = []
    seed = 0
    while len(cases) < SAMPLES:
        scene = make_scene(random.Random(f"sample/{seed}"), materials, "icons", (STYLE,))
        seed += 1
        count = Counter(scene.names)
        if len(scene.names) >= 4 and max(count.values()) == 1:  # a name alone says which
            image = f"scene-{len(cases) + 1}.jpg"
            scene.image.save(arguments.out / image, quality=92)
            cases.append({"image": image, "objects": dict(zip(scene.names, scene.boxes, strict=True))})
    (arguments.out / "samples.json").write_text(json.dumps(cases, indent=1) + "\n")


if __name__ == "__main__":
    main()
