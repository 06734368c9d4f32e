"""Asks for the same things in picture after picture, such as those of a camera, and tells what has come and gone.

python examples/watch.py PICTURE... --expression EXPRESSION...
"""

import argparse
import asyncio
from pathlib import Path

from referent import AsyncClient


async def watch(pictures: list[Path], expressions: list[str]) -> None:
    """One line for each change."""
    before: set[str] = set()
    async with AsyncClient() as client:
        for picture in pictures:
            answer = await client.ground(picture, expressions)
            now = {result.expression for result in answer.results if result.referents}
            for expression in sorted(now - before):
                print(f"{picture.name}: {expression} has come")
            for expression in sorted(before - now):
                print(f"{picture.name}: {expression} has gone")
            before = now


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="+", type=Path)
    parser.add_argument("--expression", nargs="+", required=True, dest="expressions")
    arguments = parser.parse_args()
    asyncio.run(watch(arguments.pictures, arguments.expressions))


if __name__ == "__main__":
    main()
