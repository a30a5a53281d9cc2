"""What a user's files, folders and globs stand for."""

import glob
from pathlib import Path


def resolve_files(given: str, suffixes: tuple[str, ...]) -> list[tuple[Path, Path]]:
    """(file, its path below the output folder) of a file, a folder or a glob."""
    path = Path(given)
    if path.is_file():
        return [(path, Path(path.name))]
    if path.is_dir():
        found = sorted(file for file in path.rglob("[!.]*") if _is_wanted(file, suffixes))
        if not found:
            raise FileNotFoundError(f"the folder {given} has no file that ends in {', '.join(suffixes)}")
        return [(file, file.relative_to(path)) for file in found]
    matches = sorted(Path(match) for match in glob.glob(given, recursive=True))
    found = [match for match in matches if _is_wanted(match, suffixes)]
    if not found:
        endings = ", ".join(suffixes)
        raise FileNotFoundError(f"{given} is no file, no folder and no pattern of files that end in {endings}")
    return [(file, Path(file.name)) for file in found]


def _is_wanted(path: Path, suffixes: tuple[str, ...]) -> bool:
    """Whether it is a file by its name; a link to nowhere is one too, which is to fail and not to be passed over."""
    return path.suffix.lower() in suffixes and (path.is_file() or not path.exists())
