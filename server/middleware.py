"""The outermost layer: a request id for everybody, and an answer whatever happens.

Plain ASGI on purpose: Starlette's BaseHTTPMiddleware hides disconnects from the routes.
"""

from __future__ import annotations

import logging
import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import error_response

logger = logging.getLogger(__name__)

_ACCEPTABLE_ID = re.compile(r"[\x21-\x7e]{1,128}")


class RequestBoundary:
    """Echoes or makes `x-request-id`, and answers an uncaught exception with a 500.

    The id is in `scope["state"]["request_id"]` too. After the response has begun an exception
    can only be logged and raised, so that the connection is closed.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _ACCEPTABLE_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        has_begun = False

        async def send_with_id(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except ClientDisconnect:
            logger.info("request %s: the client left before it was answered", request_id)
        except Exception as error:
            if has_begun:
                raise
            logger.exception("request %s: %s failed", request_id, scope["path"])
            await error_response(error)(scope, receive, send_with_id)
