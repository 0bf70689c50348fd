"""Data files as the project writes them: columns with TAB between, one row a line, UTF-8."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from textmatch.errors import InvalidInput


def write_rows(path: Path, rows: Iterable[Sequence[str]]) -> int:
    """Write a new file and return how many rows it has; line ends and TABs within a text become spaces.

    Raises:
        InvalidInput: the file exists, or cannot be written.
    """
    count = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8", newline="\n") as file:
            for row in rows:
                file.write("\t".join(" ".join(cell.split()) for cell in row) + "\n")
                count += 1
    except FileExistsError as error:
        raise InvalidInput.of_field("output", f'"{path}" exists already') from error
    except OSError as error:
        raise InvalidInput.of_field("output", f'"{path}" cannot be written: {error.strerror}') from error
    return count
