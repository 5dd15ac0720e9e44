"""A terminal for the chat: python examples/chat/terminal.py ann [--room lobby]

In this chat the name is the token. With --login it asks the server for one, as examples/fastapi_chat.py wants it.
"""

import argparse
import asyncio
import sys
import urllib.parse
import urllib.request

from server import Said, Say

from rtkit import Gap
from rtkit.client import RoomClient, State, connect
from rtkit.errors import RtkitError


def log_in(base: str, name: str) -> str:
    query = urllib.parse.urlencode({"name": name})
    with urllib.request.urlopen(urllib.request.Request(f"{base}/login?{query}", method="POST")) as answer:
        return answer.read().decode().strip('"')


async def show(room: RoomClient[Said]) -> None:
    async for item in room:
        if isinstance(item, Gap):
            print(f"* some messages are gone: {item}", flush=True)
        else:
            print(f"{item.sender}: {item.data.text}", flush=True)


async def lines() -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    return reader


async def main(name: str, room_name: str, base: str, *, login: bool) -> None:
    async def token() -> str:
        return await asyncio.to_thread(log_in, base, name)

    client = connect(f"{base}/rt", token=token if login else name)
    client.on_state(lambda state: print(f"* {state}", flush=True) if state is not State.CLOSED else None)
    async with (
        client,
        client.join(f"chat:{room_name}", receives=Said, rewind=20) as room,
        asyncio.TaskGroup() as tasks,
    ):
        shower = tasks.create_task(show(room))
        reader = await lines()
        while line := (await reader.readline()).decode().strip():
            try:
                await room.send(Say(line))
            except RtkitError as error:
                print(f"* not sent: {error}", flush=True)
        shower.cancel()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name")
    parser.add_argument("--room", default="lobby")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--login", action="store_true", help="get a token from /login")
    args = parser.parse_args()
    try:
        asyncio.run(main(args.name, args.room, args.url, login=args.login))
    except KeyboardInterrupt:
        pass
    except RtkitError as error:
        sys.exit(f"* {error}")
