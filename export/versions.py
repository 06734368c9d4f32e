"""Published versions of a model repository: list them, go back to one, remove those that are not needed.

python -m export.versions model_repository list
python -m export.versions model_repository use mini sha256:8c0b
python -m export.versions model_repository remove mini --keep 2
python -m export.versions model_repository republish mini [--from OTHER_REPOSITORY]
"""

import argparse
import sys
from pathlib import Path

from export.publish import exclusive, point, republish, staging
from referent.core.bundle import (
    BUNDLE_FILE,
    Bundle,
    BundleError,
    bundle_names,
    latest_version,
    load_bundle,
    version_numbers,
)
from referent.core.files import told
from referent.triton.repository import in_use, named_digest, read_release, versions


def use(repository: Path, name: str, digest: str) -> str:
    """Makes NAME/config.pbtxt name the version with this number, or with a digest that begins so, after checking its
    files; whatever serves the repository follows. Returns the whole digest. Raises `BundleError`."""
    known = versions(repository, name)
    found = list({each for number, each in known.items() if number == digest or each.startswith(digest)})
    if len(found) != 1:
        there = ", ".join(known.values()) or "none"
        raise BundleError(
            f"{len(found)} versions of {name!r} in {repository} have a digest that begins with {digest}; "
            f"there are: {there}"
        )
    release = read_release(repository, name, found[0])
    with exclusive(repository):
        point(repository, release.bundle)
    return release.digest


def remove(repository: Path, name: str, keep: int) -> list[str]:
    """Removes all versions but the newest `keep`, the one that NAME/config.pbtxt names and those that a launcher of
    this machine serves. A version whose bundle can't be read stays too, and is none of the newest. Returns what it
    removed.

    A version is unpublished before its files are removed. Remains of killed publications and removals are removed too.
    Raises `BundleError`.
    """
    with staging(repository) as discarded, exclusive(repository):
        named, bundles = named_digest(repository, name), dict[str, Bundle]()
        digests, unread = dict[str, str](), set[str]()
        for version in map(str, version_numbers(repository / name)):
            try:
                bundles[version], digests[version] = load_bundle(repository, name, version)
            except BundleError:
                unread.add(version)
        kept = {version for version, digest in digests.items() if digest == named} | set(list(digests)[:keep])
        kept |= {version for version in digests if in_use(repository / name / version / BUNDLE_FILE)}
        needed = {(part, str(number)) for version in kept for part, number in bundles[version].parts.items()}
        gone = [version for version in bundles if version not in kept]
        going = [repository / name / version for version in gone]
        for part in {part for part, _ in needed}:
            numbers = [repository / part / str(number) for number in version_numbers(repository / part)]
            going += [
                folder
                for folder in numbers
                if (part, folder.name) not in needed
                and folder.name not in unread
                and not (folder / BUNDLE_FILE).exists()  # another model
            ]
        for folder in going:
            folder.rename(discarded / f"{folder.parent.name}-{folder.name}")
    return gone


def _list(repository: Path, name: str | None) -> None:
    """Raises `BundleError` where there is nothing to list."""
    models = [name] if name else bundle_names(repository)
    if not any(version_numbers(repository / model) for model in models):
        raise BundleError(f"{repository} has no version of {name or 'any model'}: name another folder, or publish one")
    for model in models:
        try:
            named = named_digest(repository, model)
        except BundleError as error:
            print(error, file=sys.stderr)
            named = ""
        for version, digest in versions(repository, model).items():
            size = sum(file.stat().st_size for file in _files(repository, model, version)) / 1e6
            print(f"{'*' if digest == named else ' '} {model} {version} {digest} {size:.1f} MB")


def _files(repository: Path, name: str, version: str) -> list[Path]:
    try:
        listed = [repository / relative for relative in load_bundle(repository, name, version)[0].files]
    except BundleError:
        return []
    return [file for file in listed if file.is_file()]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m export.versions", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("repository", type=Path)
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="versions, newest first; * marks the one that config.pbtxt names")
    listing.add_argument("name", nargs="?")
    using = commands.add_parser("use", help="serve a version from now on, such as an older one")
    using.add_argument("name")
    using.add_argument("digest", help="or the beginning of one, or a version's number")
    removing = commands.add_parser("remove", help="remove old versions that nobody serves")
    removing.add_argument("name")
    removing.add_argument("--keep", type=int, required=True, help="how many of the newest stay in any case; 0 or more")
    again = commands.add_parser("republish", help="publish the newest version once more, from its files")
    again.add_argument("name")
    again.add_argument("--from", dest="source", type=Path, help="repository to take it from; default: the same")
    args = parser.parse_args()
    if args.command == "remove" and args.keep < 0:
        parser.error(f"--keep is {args.keep}: give 0 or more")
    try:
        if args.command == "list":
            _list(args.repository, args.name)
        elif args.command == "use":
            print(f"{args.name} is to be served as {use(args.repository, args.name, args.digest)}")
        elif args.command == "remove":
            removed = remove(args.repository, args.name, args.keep)
            print(f"removed of {args.name}: {', '.join(removed) or 'nothing'}")
        else:
            source = args.source or args.repository
            bundle, digest = republish(source, args.name, latest_version(source, args.name), args.repository)
            print(f"published {args.name} version {bundle.version}, {digest}")
    except BundleError as error:
        sys.exit(str(error))
    except OSError as error:
        sys.exit(told(error, args.repository))


if __name__ == "__main__":
    main()
