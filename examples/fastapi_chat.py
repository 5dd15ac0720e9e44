"""A chat in FastAPI: rooms with history, JSON Web Tokens, and a guard. The tutorial explains it."""

import os
import time
from dataclasses import dataclass

import jwt
from fastapi import FastAPI

from rtkit import Context, Credentials, Grant, History, Hub, Identity, Reject

SECRET = os.environ.get("CHAT_SECRET", "for the demo only: who knows this can be anybody")


@dataclass
class Say:  # what clients send
    text: str


@dataclass
class Said:  # what rooms publish
    text: str


async def authenticate(credentials: Credentials) -> Identity[bool]:
    try:
        claims = jwt.decode(credentials.token or "", SECRET, ["HS256"], options={"require": ["sub", "exp"]})
    except jwt.ExpiredSignatureError:
        raise Reject("the token has expired", code=109) from None
    except jwt.InvalidTokenError:
        raise Reject("no valid token", code=101) from None
    return Identity(claims["sub"], claims.get("staff", False), expires_at=claims["exp"])


hub = Hub(authenticate=authenticate)
chat = hub.rooms("chat:{room}", publishes=Said, history=History(1000, ttl=86_400))


@chat.authorize
async def may_join(ctx: Context[bool, Said]) -> Grant:
    if ctx.room.params["room"].startswith("staff") and not ctx.claims:
        raise Reject("this room is for staff")
    return Grant("publish", "history")


@chat.on(Say)
async def say(ctx: Context[bool, Said], message: Say) -> None:
    await ctx.room.publish(Said(message.text.strip()))


app = FastAPI(lifespan=hub.lifespan)
app.mount("/rt", hub)


@app.post("/login")
async def login(name: str) -> str:  # a real one would ask for a password
    return jwt.encode({"sub": name, "exp": time.time() + 3600, "staff": name == "boss"}, SECRET, "HS256")
