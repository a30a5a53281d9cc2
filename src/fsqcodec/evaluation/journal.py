"""What a long run has done so far, one JSON line for each finished piece: killed at any moment, it can go on."""

import json
import os
from pathlib import Path


class Journal:
    """Finished pieces by their key, in a file that only grows.

    Args:
        path: the file; made with its folder if needed. A last line that was cut off by a kill is dropped.
        header: what the run was asked for; a file with another header is refused.

    Raises `ValueError` where `path` is the journal of another run.
    """

    def __init__(self, path: Path, header: dict):
        self.path = path
        header = json.loads(json.dumps(header))  # as it comes back from the file
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        if lines and not lines[-1].endswith(b"\n"):
            lines.pop()
        if lines:
            check_same_run(path, json.loads(lines[0]), header)
        self._pieces = dict(json.loads(line) for line in lines[1:])
        if path.exists():
            os.truncate(path, sum(map(len, lines)))
        self._file = path.open("ab")
        if not lines:
            self._write(header)

    @property
    def has_pieces(self) -> bool:
        """Whether anything was finished yet."""
        return bool(self._pieces)

    def __contains__(self, key: str) -> bool:
        return key in self._pieces

    def __getitem__(self, key: str):
        return self._pieces[key]

    def add(self, key: str, piece):
        """Record a finished piece, something that JSON holds; it is on the disk when this returns."""
        self._write([key, piece])
        self._pieces[key] = piece

    def remove(self):
        """Delete the file: its run is complete, and its result is written."""
        self._file.close()
        self.path.unlink()

    def _write(self, value):
        self._file.write(json.dumps(value, allow_nan=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def check_same_run(path: Path, earlier: dict, header: dict):
    """Raise `ValueError` where `path` holds what another run was asked for, with what differs."""
    different = [key for key in earlier | header if earlier.get(key) != header.get(key)]
    if different:
        raise ValueError(
            f"{path} is of a run that was asked for something else (its {', '.join(different)} differ): "
            "give another output folder, or delete it"
        )
