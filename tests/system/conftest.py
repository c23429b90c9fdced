"""What the system tests share with the contract's: a PostgreSQL of their own."""

from databases import postgresql

__all__ = ["postgresql"]
