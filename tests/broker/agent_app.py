"""A Faust app as a user would extend ours: an agent on a low-rate topic that reads the state table."""

from __future__ import annotations

import json
import os
from typing import Any

from stream.app import create_app
from stream.settings import load_settings

app = create_app(load_settings())
asked = app.topic(os.environ["ASKED_TOPIC"], key_serializer="raw", value_serializer="raw")
answered = app.topic(os.environ["ANSWERED_TOPIC"], key_serializer="raw", value_serializer="raw")


@app.agent(asked)
async def answer(users: Any) -> None:
    async for user in users:
        name = user.decode()
        if name not in app.table:
            continue
        row = app.table[name]
        try:
            app.table[name] = row
            writable = True
        except TypeError:
            writable = False
        value = {
            "user": name,
            "events": row["events"],
            "unknown": app.table.get("nobody"),
            "writable": writable,
        }
        await answered.send(key=user, value=json.dumps(value).encode())
