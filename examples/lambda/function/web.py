"""What comes in by a Function URL, and what goes out: JSON both ways.

Shapes: AWS Lambda developer guide, "Invoking Lambda function URLs".
"""

import base64
import json
from typing import Annotated, Any

import settings
from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints, ValidationError


class HttpError(Exception):
    """An answer that is no answer: a status, a code for programs, a message for people."""

    def __init__(self, status: int, code: str, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    def reply(self) -> dict:
        """The response to send."""
        body = {"error": {"code": self.code, "message": str(self)}}
        return reply(self.status, body, **self.headers)


def reply(status: int, body: dict, **headers: str) -> dict:
    """The response in the shape that a Function URL takes."""
    return {
        "statusCode": status,
        "headers": {"content-type": "application/json", **headers},
        "body": json.dumps(body, ensure_ascii=False),
    }


def _storable(text: str) -> str:
    if "\0" in text or not text.strip():
        raise ValueError("should hold text, and no NUL character")
    return text


# A label of a LangGraph namespace: it may hold no full stop.
UserId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class Request(BaseModel):
    """One prompt of one user."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    user_id: UserId
    prompt: Annotated[
        str,
        StringConstraints(max_length=settings.MAX_PROMPT_CHARS),
        AfterValidator(_storable),
    ]


def parse_event(event: Any) -> Request:
    """The request in an event of a Function URL.

    Raises:
        HttpError: 400, 405 or 413, saying what is wrong.
    """
    try:
        method = event["requestContext"]["http"]["method"]
    except (KeyError, TypeError):
        message = "this is no event of a Function URL"
        raise HttpError(400, "invalid_event", message) from None
    if method != "POST":
        raise HttpError(405, "method_not_allowed", f"use POST, not {method}", Allow="POST")
    try:
        return Request.model_validate_json(_body(event))
    except ValidationError as error:
        raise _refusal(error) from None


def _body(event: dict) -> str | bytes:
    body = event.get("body")
    if not body:
        raise HttpError(400, "invalid_request", 'the body is empty; send {"user_id", "prompt"}')
    if not event.get("isBase64Encoded"):
        return body
    try:
        return base64.b64decode(body, validate=True)
    except (TypeError, ValueError):
        raise HttpError(400, "invalid_request", "the body is not valid Base64") from None


def _refusal(error: ValidationError) -> HttpError:
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    message = "; ".join(
        f"{'.'.join(map(str, problem['loc'])) or 'body'}: {problem['msg']}" for problem in problems
    )
    if all(problem["type"] == "string_too_long" for problem in problems):
        return HttpError(413, "prompt_too_long", message)
    return HttpError(400, "invalid_request", message)
