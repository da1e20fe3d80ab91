"""What one request may ask for at most, as the server is set up."""

from __future__ import annotations

from server.errors import LimitError
from server.protocol import GenerationRequest
from server.settings import ServerSettings


def check_limits(settings: ServerSettings, request: GenerationRequest, num_prompts: int) -> None:
    """Raise `LimitError`, naming the field, where a request asks for more than it may."""
    longest = max(map(len, request.stop), default=0)
    for param, value, limit, what in (
        ("prompt", num_prompts, settings.max_prompts, "prompts"),
        ("n", request.n, settings.max_n, "choices"),
        ("stop", len(request.stop), settings.max_stop_strings, "stop strings"),
        ("stop", longest, settings.max_stop_length, "characters in a stop string"),
    ):
        if value > limit:
            raise LimitError(
                f"{param}: {value} {what} are more than the {limit} that this server takes", param
            )
