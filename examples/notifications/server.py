"""Notifications: a site with a login, and a room for each user into which anything may be published.

A demonstration: whoever says "I am ann" is ann, and anybody may notify anybody. `page/` is what the browser gets.
"""

import os
import re
from pathlib import Path
from typing import Annotated

from fastapi import Body, Cookie, FastAPI, HTTPException, Response
from fastapi.staticfiles import StaticFiles
from rooms import Notice, inbox, router

from rtkit import Credentials, Hub, Identity, Reject

NAME = re.compile(r"[A-Za-z0-9._-]{1,32}")
LONGEST_TEXT = 500


async def authenticate(credentials: Credentials) -> Identity[None]:
    # The site's own session. A cookie goes with WebSockets and with a plain EventSource alike, and with each reconnect.
    user = credentials.cookies.get("user", "")
    if not NAME.fullmatch(user):
        raise Reject("nobody is logged in", code=101)
    return Identity(user)


hub = Hub(authenticate=authenticate, broker=os.environ.get("BROKER", "memory://"))
hub.include(router)
app = FastAPI(lifespan=hub.lifespan)
app.mount("/rt", hub)


@app.post("/login", status_code=204)
async def login(name: Annotated[str, Body(embed=True)], response: Response) -> None:
    if not NAME.fullmatch(name):
        raise HTTPException(422, "a name has 1 to 32 letters, digits and ._-")
    response.set_cookie("user", name, httponly=True, samesite="lax")  # a real one would be signed, and secure


@app.get("/me")
async def me(user: Annotated[str, Cookie()] = "") -> str:
    return user


@app.post("/logout", status_code=204)
async def logout(response: Response) -> None:
    response.delete_cookie("user")


@app.post("/notify")
async def notify(
    user: Annotated[str, Body()],
    text: Annotated[str, Body(min_length=1, max_length=LONGEST_TEXT)],
    link: Annotated[str, Body()] = "",
    key: Annotated[str | None, Body(max_length=255)] = None,
) -> int:
    """From wherever in the application something has happened; here, from whoever asks. How many there were."""
    if not NAME.fullmatch(user):
        raise HTTPException(422, "a name has 1 to 32 letters, digits and ._-")
    published = await hub.publish(inbox.name(user=user), Notice(text, link), key=key)
    return published.position.offset if published.position else 0


app.mount("/", StaticFiles(directory=Path(__file__).parent / "page", html=True))
