"""Reader's errors: one exception that is also the answer."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from receiver.reader.shapes import ERROR_STATUS

_DOCS: Final = "https://reader.dev/docs/errors#"


class ApiError(Exception):
    """An answer in Reader's error envelope. `status` only where the code's own does not fit (405)."""

    def __init__(
        self,
        code: str,
        message: str,
        details: dict[str, Any] | None = None,
        *,
        headers: dict[str, str] | None = None,
        status: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details
        self.headers = headers or {}
        self.status = status or ERROR_STATUS[code]

    def body(self) -> bytes:
        """The envelope."""
        error: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.details is not None:
            error["details"] = self.details
        error["docsUrl"] = _DOCS + self.code
        return msgspec.json.encode({"success": False, "error": error})


def not_found(what: str) -> ApiError:
    """404: there is no such thing."""
    return ApiError("not_found", f"{what} not found")


def invalid(*issues: tuple[str, str]) -> ApiError:
    """400 with `details.issues`, each a path into the request and what is wrong there."""
    told = [{"path": path, "message": message} for path, message in issues]
    first = f"{told[0]['path']}: {told[0]['message']}" if told else "invalid request"
    return ApiError("invalid_request", f"Invalid request: {first}", {"issues": told})
