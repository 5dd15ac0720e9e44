"""A folder of files beside the hub: what is shown, and what nobody gets to see."""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from rtkit.errors import UsageError
from rtkit.server import Server
from rtkit.server.static import PIECE, StaticFolder, safe_parts
from tests.unit.hosting.scripted import Acceptor
from tests.unit.hosting.sockets import TEXT, masked
from tests.unit.server.world import Answer, Client, ServerWorld, get, shake

Make = Callable[..., Awaitable[ServerWorld]]

SECRET = "secret"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder, with secrets around it and in it."""
    root = tmp_path / "www"
    (root / "sub").mkdir(parents=True)
    (root / "bare").mkdir()
    (root / "index.html").write_text("<h1>front")
    (root / "sub" / "index.html").write_text("<h1>sub")
    (root / "app.js").write_text("let é")
    (root / "a b+c%.TXT").write_text("odd")
    (root / "größe.css").write_text("p {}")
    (root / "none").write_bytes(b"")
    (root / "large.bin").write_bytes(bytes(range(256)) * 3000)
    (root / "piece.bin").write_bytes(b"p" * PIECE)
    (root / ".env").write_text(SECRET)
    (root / "sub" / ".git").mkdir()
    (root / "sub" / ".git" / "config").write_text(SECRET)
    (tmp_path / "secret.txt").write_text(SECRET)
    (tmp_path / "www-other").mkdir()
    (tmp_path / "www-other" / "x.txt").write_text(SECRET)
    (root / "out.txt").symlink_to(tmp_path / "secret.txt")
    (root / "outside").symlink_to(tmp_path)
    (root / "sideways").symlink_to("../www-other")
    (root / "in.txt").symlink_to("app.js")
    (root / "circle").symlink_to("circle")
    os.mkfifo(root / "pipe")
    return root


async def ask(world: ServerWorld, data: bytes, *, head: bool = False) -> Answer:
    """The answer, however many turns and threads it takes."""
    client = await world.ask(data)
    answers = await wait_for_answers(client, head=head)
    client.sock.close()
    return answers[0]


async def wait_for_answers(client: Client, count: int = 1, *, head: bool = False) -> list[Answer]:
    import asyncio

    answers: list[Answer] = []
    async with asyncio.timeout(20):
        while len(answers) < count:
            await asyncio.sleep(0.001)  # files are read in threads, which no clock of ours moves
            answers += client.answers(head=head)
    return answers


# -- shown ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "content_type", "body"),
    [
        ("/", "text/html; charset=utf-8", b"<h1>front"),
        ("/index.html", "text/html; charset=utf-8", b"<h1>front"),
        ("/sub/", "text/html; charset=utf-8", b"<h1>sub"),
        ("/?a=b", "text/html; charset=utf-8", b"<h1>front"),
        ("/app.js?v=1", "text/javascript; charset=utf-8", "let é".encode()),
        ("/in.txt", "text/plain; charset=utf-8", "let é".encode()),
        ("/a%20b+c%25.TXT", "text/plain; charset=utf-8", b"odd"),
        ("/gr%C3%B6%C3%9Fe.css", "text/css; charset=utf-8", b"p {}"),
        ("/none", "application/octet-stream", b""),
        ("/piece.bin", "application/octet-stream", b"p" * PIECE),
        ("/large.bin", "application/octet-stream", bytes(range(256)) * 3000),
    ],
)
async def test_a_file(make: Make, folder: Path, path: str, content_type: str, body: bytes) -> None:
    world = await make(static=folder)
    answer = await ask(world, get(path))
    assert answer.status == 200
    assert answer.headers["content-type"] == content_type
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.body == body
    head = await ask(world, get(path, method="HEAD"), head=True)
    assert head.status == 200
    assert head.headers == answer.headers
    again = await ask(world, get(path, f"If-None-Match: {answer.headers['etag']}"))
    assert (again.status, again.body) == (304, b"")
    assert again.headers["etag"] == answer.headers["etag"]
    assert (await ask(world, get(path, 'If-None-Match: "x", W/"y"'))).status == 200


async def test_the_tag_changes_with_the_file(make: Make, folder: Path) -> None:
    world = await make(static=folder)
    before = await ask(world, get("/app.js"))
    (folder / "app.js").write_text("let x = 1")
    after = await ask(world, get("/app.js", f"If-None-Match: {before.headers['etag']}"))
    assert (after.status, after.body) == (200, b"let x = 1")


async def test_several_on_one_connection(make: Make, folder: Path) -> None:
    world = await make(static=folder)
    client = await world.ask(
        get("/large.bin") + get("/none") + get("/x") + get("/app.js", method="POST") + get()
    )
    answers = await wait_for_answers(client, 5)
    assert [answer.status for answer in answers] == [200, 200, 404, 405, 204]
    assert answers[3].headers["allow"] == "GET, HEAD"
    assert len(answers[0].body) == 768_000


async def test_for_a_client_that_has_closed_its_half(make: Make, folder: Path) -> None:
    world = await make(static=folder)
    client = await world.open()
    client.say(get("/large.bin"))
    client.sock.shutdown(socket.SHUT_WR)
    (answer,) = await wait_for_answers(client)
    assert len(answer.body) == 768_000
    await wait_until(lambda: client.gone)


async def test_beside_a_hub_at_the_root(make: Make, folder: Path) -> None:
    (folder / "ready").write_text("not this one")
    (folder / "sub" / "ready").write_text("this one")
    (folder / "sub" / "client.js").write_text("mine")
    world = await make(static=folder, path="")
    assert (await ask(world, get("/"))).body == b"<h1>front"
    assert (await ask(world, get("/ready"))).status == 204
    assert (await ask(world, get("/sub/ready"))).body == b"this one"
    assert (await ask(world, get("/sub/client.js"))).body == b"mine"
    for path in ("/", "/ws", "/connection/websocket"):
        client = await world.ask(shake(path) + masked(TEXT, b"x"))
        assert client.answer().status == 101
        assert client.texts == ["x"]


async def test_below_the_hub_there_are_no_files(make: Make, folder: Path) -> None:
    (folder / "rt").mkdir()
    (folder / "rt" / "x.txt").write_text("hidden")
    (folder / "rtx.txt").write_text("seen")
    world = await make(static=folder)
    assert (await ask(world, get("/rt/x.txt"))).status == 404
    assert (await ask(world, get("/rtx.txt"))).body == b"seen"


# -- not shown -----------------------------------------------------------------------------------------

TRICKS = [
    "/missing.txt",
    "/sub",
    "/bare/",
    "/bare",
    "/sub/index.html/",
    "/sub//index.html",
    "//index.html",
    "/./index.html",
    "/.env",
    "/sub/.git/config",
    "/../secret.txt",
    "/sub/../../secret.txt",
    "/%2e%2e/secret.txt",
    "/%2E%2E%2Fsecret.txt",
    "/..%2fsecret.txt",
    "/..%5csecret.txt",
    "/..\\secret.txt",
    "/%252e%252e/secret.txt",
    "/sub/%2e%2e/%2e%2e/secret.txt",
    "/.../secret.txt",
    "/..;/secret.txt",
    "/%00",
    "/index.html%00.txt",
    "/index.html%0a",
    "/index.html%7f",
    "/app.js::$DATA",
    "/c:/windows/win.ini",
    "/file:///etc/passwd",
    "//etc/passwd",
    "/%2fetc/passwd",
    "/etc/passwd",
    "/out.txt",
    "/outside/secret.txt",
    "/outside/www/index.html",
    "/sideways/x.txt",
    "/circle",
    "/pipe",
    "/" + "x" * 300,
    "/" + "x/" * 3000,
    "/%ff%fe",
    "/%ed%a0%80",
    "http://test/../secret.txt",
    "http://test//../secret.txt",
    "../secret.txt",
    "*",
]


@pytest.mark.parametrize("path", TRICKS)
async def test_what_nobody_gets_to_see(make: Make, folder: Path, path: str) -> None:
    world = await make(static=folder)
    answer = await ask(world, get(path))
    # Through a link that leads out and in again there is a way to a file of the folder; it holds no secret.
    assert answer.status == (200 if path == "/outside/www/index.html" else 404)
    assert SECRET not in answer.text
    assert str(folder) not in answer.text


def test_the_tricks_are_seen_through_twice(folder: Path) -> None:
    """What the text of a path lets through, the file system's own answer does not."""
    static = StaticFolder(folder)
    for parts in (
        ("..", "secret.txt"),
        ("sub", "..", "..", "secret.txt"),
        ("/etc/passwd",),
        ("out.txt",),
        ("x\0",),
    ):
        assert static.open(parts) is None
    assert safe_parts("/a/b.txt") == ("a", "b.txt")
    assert safe_parts("/") == ("index.html",)
    assert safe_parts("") is None


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        Server(Acceptor(), static=tmp_path / "nowhere")


async def test_a_file_that_shrinks_while_it_is_sent_breaks_the_connection(
    make: Make, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Never a shorter body than was promised, nor something else in its place."""
    path = folder / "large.bin"
    path.write_bytes(b"x" * 5_000_000)
    world = await make(static=folder)
    client = world.connect()
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await world.settle()
    client.say(get("/large.bin"))
    await wait_until(lambda: bool(client.listen(1)))
    path.write_bytes(b"short")
    await wait_until(lambda: client.gone)
    assert len(client.heard) < 5_000_000
    assert "a request failed: GET '/large.bin'" in caplog.text
    await world.others_are_served()


async def test_a_client_that_reads_none_of_a_large_file(make: Make, folder: Path, tmp_path: Path) -> None:
    (folder / "large.bin").write_bytes(b"x" * 5_000_000)
    world = await make({"unix": tmp_path / "sock"}, static=folder)
    client = await world.ask(get("/large.bin"))
    (connection,) = world.server._site.open
    await wait_until(lambda: connection._drained is not None)
    assert connection._network is not None
    assert connection._network.get_write_buffer_size() < 3 * PIECE
    await world.clock.advance(29.5)
    assert world.server.statistics().http == 1
    await world.clock.advance(0.5)
    assert world.server.statistics().http == 0
    assert world.server.statistics().tasks == 0
    assert client.gone


async def wait_until(condition: Callable[[], Any]) -> None:
    import asyncio

    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - threads tell nobody
            await asyncio.sleep(0.001)
