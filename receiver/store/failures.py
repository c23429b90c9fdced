"""Which database errors are expected, and what they are called here."""

from __future__ import annotations

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError

from receiver.errors import RowRefusedError, StoreError

_DEADLOCK, _SERIALIZATION = "40P01", "40001"
_DISK_FULL = "53100"


def translate(error: SQLAlchemyError) -> StoreError:
    """The error to raise instead of `error`: its cause in the driver's words, without the statement or its parameters."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    kind = RowRefusedError if isinstance(error, IntegrityError | DataError) else StoreError
    words = str(cause).splitlines()[0] if str(cause) else "no reason given"
    name = getattr(cause, "sqlite_errorname", None)
    if name is not None and name.startswith("SQLITE_IOERR"):
        words += f", {name}"  # the words are the same for thirty causes
    full = name == "SQLITE_FULL" or getattr(cause, "sqlstate", None) == _DISK_FULL
    return kind(f"the database did not take it ({type(cause).__name__}: {words}){'; make room on its disk' if full else ''}")


def is_passing(error: SQLAlchemyError) -> bool:
    """Whether the very same transaction may succeed at once when tried again (a deadlock's victim was rolled back whole).

    So it may when the connection was lost, if nobody had asked for the commit yet: else its outcome is unknown.
    """
    if not isinstance(error, DBAPIError):
        return False
    return error.connection_invalidated or getattr(error.orig, "sqlstate", None) in {_DEADLOCK, _SERIALIZATION}


def is_loss(error: SQLAlchemyError) -> bool:
    """Whether the connection broke, so that what the server did last is unknown."""
    return isinstance(error, DBAPIError) and error.connection_invalidated


def is_about_a_row(error: Exception) -> bool:
    """Whether what was to be written was at fault, rather than the database: the rest of its batch can be written without it."""
    return isinstance(error, RowRefusedError) or not isinstance(error, StoreError)
