"""Published versions of a model repository: list them, go back to one, remove those that are not needed.

python -m export.versions model_repository list
python -m export.versions model_repository use mini sha256:8c0b
python -m export.versions model_repository remove mini --keep 2
python -m export.versions model_repository republish mini [--from OTHER_REPOSITORY]
"""

import argparse
import shutil
import sys
from pathlib import Path

from export.publish import STAGING, exclusive, is_abandoned, point, republish, staging
from referent.core.bundle import BUNDLE_FILE, BundleError, bundle_names, latest_version, load_bundle
from referent.triton.repository import in_use, named_digest, read_release, versions


def use(repository: Path, name: str, digest: str) -> str:
    """Makes NAME/config.pbtxt name the version with this number, or with a digest that begins so, after checking its
    files; whatever serves the repository follows. Returns the whole digest. Raises `BundleError`."""
    found = [each for number, each in versions(repository, name).items() if number == digest or each.startswith(digest)]
    if len(found) != 1:
        known = ", ".join(versions(repository, name).values()) or "none"
        raise BundleError(
            f"{len(found)} versions of {name!r} have a digest that begins with {digest}; there are: {known}"
        )
    release = read_release(repository, name, found[0])
    with exclusive(repository):
        point(repository, release.bundle)
    return release.digest


def remove(repository: Path, name: str, keep: int) -> list[str]:
    """Removes all versions but the newest `keep`, the one that NAME/config.pbtxt names and those that a launcher of
    this machine serves. Returns what it removed.

    A version is unpublished before its files are removed. Remains of killed publications and removals are removed too.
    Raises `BundleError`.
    """
    with exclusive(repository):
        known, named = versions(repository, name), named_digest(repository, name)
        kept = {version for version, digest in known.items() if digest == named} | set(list(known)[:keep])
        kept |= {version for version in known if in_use(repository / name / version / BUNDLE_FILE)}
        bundles = [load_bundle(repository, name, version)[0] for version in kept]
        needed = {(part, str(number)) for bundle in bundles for part, number in bundle.parts.items()}
        going = [repository / name / version for version in known if version not in kept]
        for part in {part for part, _ in needed}:
            numbers = [folder for folder in (repository / part).glob("[1-9]*") if folder.name.isdecimal()]
            going += [folder for folder in numbers if (part, folder.name) not in needed]
        with staging(repository) as discarded:
            for folder in going:
                folder.rename(discarded / f"{folder.parent.name}-{folder.name}")
        for folder in repository.glob(f"{STAGING}*"):
            if is_abandoned(folder):
                shutil.rmtree(folder, ignore_errors=True)
    return [version for version in known if version not in kept]


def _list(repository: Path, name: str | None) -> None:
    for model in [name] if name else bundle_names(repository):
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
    removing.add_argument("--keep", type=int, required=True, help="how many of the newest stay in any case")
    again = commands.add_parser("republish", help="publish the newest version once more, from its files")
    again.add_argument("name")
    again.add_argument("--from", dest="source", type=Path, help="repository to take it from; default: the same")
    args = parser.parse_args()
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
    except (BundleError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
