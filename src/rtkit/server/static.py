"""A folder of files, for demos. It serves what is a regular file inside the folder, and nothing else.

What a path may not do is decided twice. By its text, before the file system is asked: no segment that begins with a
dot (which covers ``..`` and hidden files), no backslash, colon, NUL or other control character, whether written
plainly or as percent escapes, which are decoded once. By the file, after every link was followed: it must lie inside
the folder, and be a regular file, so that a link out of the folder, a device or a pipe is not found.

The answer to all of it is 404, so that nobody learns what exists. Folders are never listed; one with an
``index.html`` shows that for its path with a slash at the end.
"""

from __future__ import annotations

import asyncio
import os
import stat
from io import FileIO
from pathlib import Path
from typing import Final, final

from ..errors import UsageError

__all__ = ["PIECE", "StaticFile", "StaticFolder", "safe_parts"]

#: Bytes read, and sent, at once.
PIECE: Final = 64 * 1024

# Not from the mimetypes module, which asks the machine: there are some that call JavaScript plain text.
_TYPES: Final = {
    "avif": "image/avif",
    "css": "text/css; charset=utf-8",
    "csv": "text/csv; charset=utf-8",
    "gif": "image/gif",
    "htm": "text/html; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "ico": "image/x-icon",
    "jpeg": "image/jpeg",
    "jpg": "image/jpeg",
    "js": "text/javascript; charset=utf-8",
    "json": "application/json",
    "map": "application/json",
    "md": "text/plain; charset=utf-8",
    "mjs": "text/javascript; charset=utf-8",
    "mp3": "audio/mpeg",
    "mp4": "video/mp4",
    "ogg": "audio/ogg",
    "pdf": "application/pdf",
    "png": "image/png",
    "svg": "image/svg+xml",
    "txt": "text/plain; charset=utf-8",
    "wasm": "application/wasm",
    "wav": "audio/wav",
    "webm": "video/webm",
    "webmanifest": "application/manifest+json",
    "webp": "image/webp",
    "woff2": "font/woff2",
    "xml": "application/xml",
}
_OTHER: Final = "application/octet-stream"


def safe_parts(path: str) -> tuple[str, ...] | None:
    """The segments of a decoded URL path below a folder; None for one that is not to be looked up.

    The path of a folder, with a slash at its end, means the ``index.html`` in it.
    """
    if not path.startswith("/") or any(char in "\\:" or char < " " or char == "\x7f" for char in path):
        return None
    if path.endswith("/"):
        path += "index.html"
    parts = path[1:].split("/")
    if any(not part or part.startswith(".") for part in parts):
        return None
    return tuple(parts)


@final
class StaticFile:
    """A file that was found, and opened.

    :ivar first: its beginning, at most :data:`PIECE` bytes.
    """

    __slots__ = ("_busy", "_rest", "content_type", "etag", "first", "size")

    def __init__(self, size: int, etag: str, content_type: str, first: bytes, rest: FileIO | None) -> None:
        self.size = size
        self.etag = etag
        self.content_type = content_type
        self.first = first
        self._rest = rest
        self._busy: asyncio.Future[bytes] | None = None

    async def read(self, size: int) -> bytes:
        """What follows, at most so many bytes; empty at the end.

        Cancellation: safe; only :meth:`close` may be called then.
        """
        if self._rest is None or not size:
            return b""
        self._busy = asyncio.get_running_loop().run_in_executor(None, _read, self._rest, size)
        return await asyncio.shield(self._busy)

    def close(self) -> None:
        """Let go of it. Idempotent."""
        rest, self._rest = self._rest, None
        if rest is None:
            return
        if self._busy is None or self._busy.done():
            rest.close()
        else:
            # A descriptor that is closed while a thread reads may be somebody else's socket by then.
            self._busy.add_done_callback(lambda _: rest.close())


@final
class StaticFolder:
    """See the module's docstring.

    :param root: the folder.
    :raises UsageError: when there is none.
    """

    __slots__ = ("root",)

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root).resolve()
        if not self.root.is_dir():
            raise UsageError(f"static={os.fspath(root)!r}: there is no such folder")

    async def find(self, parts: tuple[str, ...]) -> StaticFile | None:
        """The file at *parts* below the folder; None when there is none that may be shown. Looks in a thread.

        Cancellation: safe.
        """
        looking = asyncio.get_running_loop().run_in_executor(None, self.open, parts)
        try:
            return await asyncio.shield(looking)
        except asyncio.CancelledError:
            looking.add_done_callback(_close_late)
            raise

    def open(self, parts: tuple[str, ...]) -> StaticFile | None:
        """The same, in this thread, which it blocks."""
        try:
            path = self.root.joinpath(*parts).resolve(strict=True)
            if not path.is_relative_to(self.root):
                return None
            # Not to wait for somebody to write into a pipe.
            file = FileIO(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)))
        except (OSError, ValueError, RuntimeError):  # RuntimeError: links in a circle, before Python 3.13
            return None
        keep = False
        try:
            info = os.fstat(file.fileno())
            if not stat.S_ISREG(info.st_mode):
                return None
            first = _read(file, min(PIECE, info.st_size))
            keep = info.st_size > len(first)
            suffix = parts[-1].rpartition(".")[2].lower()
            return StaticFile(
                size=info.st_size,
                etag=f'"{info.st_mtime_ns:x}-{info.st_size:x}"',
                content_type=_TYPES.get(suffix, _OTHER),
                first=first,
                rest=file if keep else None,
            )
        except OSError:
            return None
        finally:
            if not keep:
                file.close()

    def __repr__(self) -> str:
        return f"<StaticFolder {str(self.root)!r}>"


def _close_late(looking: asyncio.Future[StaticFile | None]) -> None:
    """Nobody waits for it any more."""
    if not looking.cancelled() and looking.exception() is None and (found := looking.result()) is not None:
        found.close()


def _read(file: FileIO, size: int) -> bytes:
    """So many bytes, or all there are."""
    parts: list[bytes] = []
    while size and (part := file.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
