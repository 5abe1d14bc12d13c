"""Keeps files for upload, as they are now, without reading them where that can be avoided."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

COPY_BELOW_BYTES = 1 << 20
"""Smaller files are copied: a link would change with a file that is rewritten in place, and a copy costs little."""

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
_NO_LINK = {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP}


def stage(folder: Path, path: Path, destination: str) -> tuple[str, str, int, int]:
    """Link or copy ``path`` into a journal's folder; returns the content of its record.

    Raises OSError where the file cannot be read or there is no space, and leaves nothing behind then.
    """
    source = path.resolve(strict=True)
    place = folder / "staged" / secrets.token_hex(4)
    place.mkdir(parents=True)
    target = place / Path(destination).name
    try:
        _link_or_copy(source, target)
    except OSError:
        shutil.rmtree(place, ignore_errors=True)
        raise
    facts = target.stat()
    return f"{place.name}/{target.name}", destination, facts.st_size, facts.st_mtime_ns


def files_below(folder: Path) -> Iterator[tuple[Path, str]]:
    """Every file below ``folder`` with its path from there, sorted."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path, path.relative_to(folder).as_posix()


def is_no_space(error: OSError) -> bool:
    """Whether the file system refuses to take more."""
    return error.errno in _NO_SPACE


def _link_or_copy(source: Path, target: Path) -> None:
    if source.stat().st_size >= COPY_BELOW_BYTES:
        try:
            os.link(source, target)
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
        else:
            return
    shutil.copyfile(source, target)
