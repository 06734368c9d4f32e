"""Writes the digest that each image's tag has now beside it: NAME:TAG becomes NAME:TAG@sha256:...

    make pin [PINNED="FILE ..."]

asks the images' registries by docker buildx, so it needs both, and a login where an image takes one. Digests that stand
there already are looked up again. Nothing is written unless all are found.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = ["docker-compose.yml", "gateway/Dockerfile", "export/Dockerfile", "deploy/kubernetes/base/triton.yaml"]
IMAGE = re.compile(r"^(\s*(?:FROM|image:)\s+)([\w.-]+(?:[/:][\w.-]+)*:[\w.-]+)(?:@sha256:[0-9a-f]{64})?(?=\s|$)", re.M)


def main() -> None:
    files = [Path(name) for name in sys.argv[1:]] or [ROOT / name for name in FILES]
    try:
        texts = {file: file.read_text() for file in files}
        images = sorted({match[2] for text in texts.values() for match in IMAGE.finditer(text)})
        digests = {image: digest_of(image) for image in images}
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    for file, text in texts.items():
        file.write_text(IMAGE.sub(lambda match: f"{match[1]}{match[2]}@{digests[match[2]]}", text))
    for image, digest in digests.items():
        print(f"{image}@{digest}")


def digest_of(image: str) -> str:
    """Raises ValueError with docker's own reason, OSError where docker is not there."""
    command = ["docker", "buildx", "imagetools", "inspect", "--format", "{{.Manifest.Digest}}", image]
    try:
        asked = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise OSError(f"docker is needed to look up the digest of {image}: install it") from error
    digest = asked.stdout.strip()
    if asked.returncode or not re.fullmatch("sha256:[0-9a-f]{64}", digest):
        raise ValueError(f"no digest of {image}: {asked.stderr.strip() or digest or 'docker printed none'}")
    return digest


if __name__ == "__main__":
    main()
