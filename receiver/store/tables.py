"""The tables, for SQLite and PostgreSQL alike. CHECK constraints refuse rows that cannot be.

Times are Unix seconds as doubles. `*_at` columns that schedule (`due_at`, `lease_until`, `frees_at`) are on the database's clock
(see `Transaction.now`); those that people read (`received_at`, `settled_at`, …) are on the same one, close enough to a wall clock.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    DDL,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Dialect,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    event,
    text,
)
from sqlalchemy.schema import SchemaItem

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

# SQLite numbers rows by itself only in a column of type INTEGER.
_RowId = BigInteger().with_variant(Integer, "sqlite")


_Bytewise = Text().with_variant(Text(collation="C"), "postgresql")
"""Text that ranges are taken of: PostgreSQL would compare it by the rules of some language, and slowly."""

UNSIGNED = "substr(key, 1, 1) = 'u'"
"""Of a dedupe key: its delivery was not signed. As with `MISSED`."""
MISSED = "state = 'settled' AND status <> 'cancelled' AND NOT told"
"""Of a job: no webhook has told of its newest end. Written alike in the index and where it is asked for."""


def _churn(free: int | None = None) -> dict[str, Any]:
    """How PostgreSQL is to keep a table whose rows are updated, or pruned, all the time.

    `free`: percent of each page left free. An update that touches no index then stays on its page and costs none (HOT). Vacuuming goes
    by a hundredth of the rows, not by the usual fifth: of a million rows that would be 200,000 dead ones to read past.
    """
    fill = {} if free is None else {"fillfactor": 100 - free}
    return {"postgresql_with": fill | {"autovacuum_vacuum_scale_factor": 0.01, "autovacuum_vacuum_threshold": 500}}


def _where(*columns: str, only: str, name: str | None = None) -> Index:
    """An index of the rows for which `only` holds: the others neither cost it anything nor stand in its way."""
    return Index(name, *columns, sqlite_where=text(only), postgresql_where=text(only))


class _Foreign(TypeDecorator[str]):
    """Words of Reader's, a hook's or a page's, to search and show by.

    PostgreSQL's text takes no NUL, and neither database a lone surrogate. They are replaced: whoever sends them must not be able
    to keep a row from being written.
    """

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        del dialect
        return None if value is None else value.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


def _one_of(column: str, *values: str) -> CheckConstraint:
    # Not `IN (…)`: for more than two, SQLite builds a tree of them at each insert, which takes longer than all the rest of it.
    return CheckConstraint(" OR ".join(f"{column} = {value!r}" for value in values), name=f"{column}_known")


def _lease() -> list[SchemaItem]:
    """Who works on the row, until when; `fence` grows with each claim, and a write must carry the newest."""
    return [
        Column("lease_owner", Text),
        Column("lease_until", Double),
        Column("fence", BigInteger, nullable=False, server_default="0"),
        CheckConstraint("(lease_owner IS NULL) = (lease_until IS NULL)", name="lease_is_whole"),
    ]


deliveries = Table(
    "deliveries",
    metadata,
    Column("id", _RowId, primary_key=True),
    Column("received_at", Double, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("reason", Text),
    Column("event", Text),
    Column("job_id", Text),
    Column("delivery_id", Text),
    Column("signed_at", BigInteger),
    Column("key", Text),
    Column("body", LargeBinary, nullable=False),
    _one_of("outcome", "accepted", "ignored", "quarantined"),
    CheckConstraint("outcome <> 'accepted' OR job_id IS NOT NULL", name="accepted_names_a_job"),
    CheckConstraint("(outcome = 'quarantined') = (reason IS NOT NULL)", name="quarantined_says_why"),
    # No other index of all than that of the id, which is in the order in which they came: each would cost every delivery.
    _where("outcome", "id", only="outcome <> 'accepted'", name="ix_deliveries_set_aside"),
    **_churn(),
)

# Dedupe: a key is inserted or it is known. Kept for at least 24 h.
seen = Table(
    "seen",
    metadata,
    Column("key", _Bytewise, primary_key=True),
    Column("first_at", Double, nullable=False),
    Column("hits", Integer, nullable=False, server_default="1"),
    Column("digest", Text, nullable=False),  # of the body it first came with
    CheckConstraint("hits >= 1", name="hits_positive"),
    # Those of signed deliveries are led by their time, and found by it when they are pruned; these are of unsigned ones.
    _where("first_at", "key", only=UNSIGNED),
    sqlite_with_rowid=False,
    **_churn(),
)

submissions = Table(
    "submissions",
    metadata,
    Column("id", Text, primary_key=True),
    Column("idempotency_key", Text, nullable=False, unique=True),
    Column("body", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("due_at", Double),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("job_id", Text),
    Column("trouble", _Foreign),
    *_lease(),
    _one_of("state", "pending", "sent", "refused", "expired"),
    CheckConstraint("(state = 'sent') = (job_id IS NOT NULL)", name="sent_has_a_job"),
    CheckConstraint("(state = 'pending') = (due_at IS NOT NULL)", name="pending_is_due"),
    _where("due_at", only="due_at IS NOT NULL"),
    _where("created_at", "id", only="due_at IS NULL"),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", Text, primary_key=True),
    Column("state", Text, nullable=False),
    # Reader's word, as last seen.
    Column("status", _Foreign, nullable=False, server_default="unknown"),
    Column("completed", BigInteger, nullable=False, server_default="0"),
    Column("total", BigInteger, nullable=False, server_default="0"),
    Column("document", LargeBinary),  # the job as Reader shows it, without its results
    # How we know of it.
    Column("source", Text, nullable=False),
    Column("tracked_at", Double, nullable=False),
    Column("submission_id", Text),
    # Generations. `generation` is the newest opened, `settled_generation` the one readers see (0: none).
    Column("generation", Integer, nullable=False, server_default="0"),
    Column("settled_generation", Integer, nullable=False, server_default="0"),
    Column("mark", Text),
    Column("result_total", BigInteger),  # what the first page of the pass at hand said
    Column("restarts", Integer, nullable=False, server_default="0"),
    Column("requests", Integer, nullable=False, server_default="0"),
    Column("page_limit", Integer, nullable=False, server_default="100"),
    Column("noticed_at", Double),
    Column("discovered_by", Text),
    Column(
        "told", Boolean, nullable=False, server_default=text("false")
    ),  # a webhook told of the newest generation, even if late
    # When to look.
    Column("due_at", Double),
    Column("expects_end", Boolean, nullable=False, server_default=text("false")),
    Column("cue", Integer, nullable=False, server_default="0"),
    Column("claimed_cue", Integer, nullable=False, server_default="0"),
    Column("cued_by", Text),
    Column("looked_at", Double),
    Column("progressed_at", Double),
    Column("heard", BigInteger),  # results gathered since that look, as the stream told
    Column("stalls", Integer, nullable=False, server_default="0"),
    Column("stalled", Boolean, nullable=False, server_default=text("false")),  # and that was told
    Column("late_looks", Integer, nullable=False, server_default="0"),
    Column("attempts", Integer, nullable=False, server_default="0"),  # in a row that brought no answer
    Column("misses", Integer, nullable=False, server_default="0"),  # answers in a row that were of no use
    Column("trouble", _Foreign),
    # Retrying failed URLs by ourselves.
    Column("retry", Text),  # how far the one of the settled generation has come
    Column("retries", Integer, nullable=False, server_default="0"),  # that were wanted so far
    Column("held", Boolean, nullable=False, server_default=text("false")),  # the settled generation's event, until the next one's
    Column("refetch", Boolean, nullable=False, server_default=text("false")),  # somebody wants the pruned results again
    *_lease(),
    _one_of("state", "watching", "hydrating", "settled", "parked"),
    _one_of("source", "submit", "track", "webhook", "stream"),
    _one_of("discovered_by", "webhook", "poll", "stream"),
    CheckConstraint("settled_generation BETWEEN 0 AND generation", name="settled_is_opened"),
    CheckConstraint(
        "state <> 'hydrating' OR (generation > settled_generation AND mark IS NOT NULL)",
        name="hydrating_has_a_generation",
    ),
    CheckConstraint("state <> 'settled' OR (generation >= 1 AND settled_generation = generation)", name="settled_is_newest"),
    CheckConstraint("state IN ('settled', 'parked') OR due_at IS NOT NULL", name="unsettled_is_due"),
    CheckConstraint("page_limit BETWEEN 1 AND 100", name="page_limit_in_range"),
    _one_of("retry", "due", "asked", "refused"),
    CheckConstraint("retry IS NULL OR (state = 'settled' AND due_at IS NOT NULL)", name="retry_is_due"),
    # Nothing is held back for good: somebody will look at the job, to retry it or to see its next end.
    CheckConstraint(
        "NOT held OR (settled_generation >= 1 AND due_at IS NOT NULL AND (state <> 'settled' OR retry IS NOT NULL))",
        name="held_is_due",
    ),
    # Claimed first, and then in the order of their due time: two walks that each end at the first job they find.
    _where("due_at", "cued_by", only="cued_by IS NOT NULL", name="ix_jobs_cued"),
    _where("due_at", only="due_at IS NOT NULL"),
    # Listed newest first, all or those of a state or a status.
    Index(None, "tracked_at"),
    Index(None, "state", "tracked_at"),
    Index(None, "status", "tracked_at"),
    # The schedule asks at every turn how the last ones ended that were known before.
    _where("noticed_at", only="noticed_at IS NOT NULL AND source <> 'webhook'"),
    _where("state", "tracked_at", only=MISSED, name="ix_jobs_missed"),
    **_churn(free=30),
)

# One row a result; its JSON is `length` bytes from `start` in its page's chunks laid end to end.
results = Table(
    "results",
    metadata,
    Column("job_id", Text, primary_key=True),
    Column("generation", Integer, primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("page", Integer, nullable=False),
    Column("url", _Foreign, nullable=False),
    Column("error", _Foreign),
    Column("digest", LargeBinary, nullable=False),
    Column("start", BigInteger, nullable=False),
    Column("length", BigInteger, nullable=False),
    CheckConstraint("position >= page AND page >= 0", name="position_on_page"),
    CheckConstraint("start >= 0 AND length > 0", name="slice_not_empty"),
    # Shown first.
    _where("job_id", "generation", "position", only="error IS NOT NULL", name="ix_results_failed"),
    **_churn(),
)

chunks = Table(
    "chunks",
    metadata,
    Column("job_id", Text, primary_key=True),
    Column("generation", Integer, primary_key=True),
    Column("page", Integer, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("data", LargeBinary, nullable=False),
    CheckConstraint("length(data) <= 1048576", name="at_most_a_mebibyte"),
    **_churn(),
)
# Compressed already: PostgreSQL would try in vain to make them smaller.
AS_THEY_ARE = "ALTER TABLE chunks ALTER COLUMN data SET STORAGE EXTERNAL"
event.listen(chunks, "after_create", DDL(AS_THEY_ARE).execute_if(dialect="postgresql"))  # type: ignore[no-untyped-call]  # untyped by its library

# One row a settled generation. It stays as a tombstone when its results are pruned.
outcomes = Table(
    "outcomes",
    metadata,
    Column("job_id", Text, primary_key=True),
    Column("generation", Integer, primary_key=True),
    Column("status", Text, nullable=False),
    Column("document", LargeBinary, nullable=False),
    Column("results", Integer, nullable=False),
    Column("failed_urls", Integer, nullable=False),
    Column("verified", Boolean, nullable=False),
    Column("discovered_by", Text, nullable=False),
    Column("requests", Integer, nullable=False),
    Column("ended_at", Double),
    Column("noticed_at", Double, nullable=False),
    Column("settled_at", Double, nullable=False),
    # When retention began to take its results away: from then on nobody reads them. `swept`: none is left.
    Column("pruned_at", Double),
    Column("swept", Boolean, nullable=False, server_default=text("false")),
    _one_of("status", "completed", "failed", "cancelled"),
    _one_of("discovered_by", "webhook", "poll", "stream"),
    CheckConstraint("failed_urls BETWEEN 0 AND results", name="failed_within_results"),
    CheckConstraint("generation >= 1", name="generation_positive"),
    CheckConstraint("NOT swept OR pruned_at IS NOT NULL", name="swept_was_pruned"),
    _where("settled_at", "job_id", "generation", only="NOT swept", name="ix_outcomes_kept"),
)

events = Table(
    "events",
    metadata,
    Column("id", Text, primary_key=True),
    Column("job_id", Text, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("type", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("payload", Text, nullable=False),
    Column("stall", Integer, nullable=False, server_default="0"),  # which one of the job; 0: it is an end
    _one_of("type", "job.completed", "job.failed", "job.cancelled", "job.stalled"),
    CheckConstraint("(type = 'job.stalled') = (stall > 0)", name="stalled_says_which"),
    # However often a generation is settled, it ends once.
    UniqueConstraint("job_id", "generation", "stall"),
    Index(None, "created_at", "id"),
    **_churn(),
)

# The hooks some process has declared: events fan out to these, whoever settles the job.
hooks = Table(
    "hooks",
    metadata,
    Column("name", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("events", Text, nullable=False),  # JSON list of event types
    Column("declared_at", Double, nullable=False),
    Column("retired", Boolean, nullable=False, server_default=text("false")),
    # How it fares: attempts that failed since the last one that did not.
    Column("failures", Integer, nullable=False, server_default="0"),
    Column("failing_since", Double),
    # Nothing is brought to it meanwhile; from `probe_at` on, one delivery. Without that it was paused by command, and stays so.
    Column("paused_at", Double),
    Column("paused_why", _Foreign),
    Column("probe_at", Double),
    _one_of("kind", "python", "http", "command", "broker"),
    CheckConstraint("(failures > 0) = (failing_since IS NOT NULL)", name="failing_since_the_first"),
    CheckConstraint("(paused_at IS NULL) = (paused_why IS NULL)", name="paused_says_why"),
    CheckConstraint("probe_at IS NULL OR paused_at IS NOT NULL", name="probed_is_paused"),
)

hook_deliveries = Table(
    "hook_deliveries",
    metadata,
    Column("event_id", Text, primary_key=True),
    Column("hook", Text, primary_key=True),
    Column("job_id", Text, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("created_at", Double, nullable=False),
    Column("due_at", Double),
    Column("delivered_at", Double),
    Column("last_status", Integer),
    Column("last_error", _Foreign),
    *_lease(),
    _one_of("state", "pending", "delivered", "dead"),
    CheckConstraint("(state = 'pending') = (due_at IS NOT NULL)", name="pending_is_due"),
    CheckConstraint("(state = 'delivered') = (delivered_at IS NOT NULL)", name="delivered_says_when"),
    _where("hook", "due_at", only="due_at IS NOT NULL"),
    _where("job_id", "generation", only="due_at IS NOT NULL"),
    _where("created_at", only="state = 'dead'"),
    Index(None, "hook", "created_at"),  # listed newest first
    **_churn(free=30),
)

# What became of each attempt, for people to see why a hook fails.
hook_attempts = Table(
    "hook_attempts",
    metadata,
    Column("id", _RowId, primary_key=True),
    Column("event_id", Text, nullable=False),
    Column("hook", Text, nullable=False),
    Column("number", Integer, nullable=False),
    Column("at", Double, nullable=False),
    Column("seconds", Double, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("status", Integer),
    Column("error", _Foreign),
    Column("answer", _Foreign),  # its beginning
    _one_of("outcome", "delivered", "failed", "dead", "later"),
    CheckConstraint("number >= 1 AND seconds >= 0", name="was_made"),
    Index(None, "event_id", "hook"),
    **_churn(),
)

# What else happened to a job, told by nothing above: written by who does it, in the transaction in which it is done.
# The same thing several times in a row is one row: from `at` to `last_at`.
history = Table(
    "history",
    metadata,
    Column("id", _RowId, primary_key=True),
    Column("job_id", Text, nullable=False),
    Column("number", Integer, nullable=False),  # of the job's; those far behind its newest are deleted
    Column("what", Text, nullable=False),
    Column("generation", Integer),
    Column("at", Double, nullable=False),
    Column("last_at", Double, nullable=False),
    Column("count", Integer, nullable=False, server_default="1"),
    Column("detail", _Foreign, nullable=False),  # a JSON object
    _one_of(
        "what",
        "asked",
        "heard",
        "looked",
        "noticed",
        "page",
        "again",
        "unchanged",
        "trouble",
        "parked",
        "retried",
        "given up",
        "reopened",
        "restored",
    ),
    CheckConstraint("count >= 1 AND number >= 1", name="counts_from_one"),
    # Not unique: who asks for something and who works on the job may write at the same moment.
    Index(None, "job_id", "number"),
    **_churn(free=20),
)

# The sliding window of requests to Reader: a slot is taken until `frees_at`.
grants = Table(
    "grants",
    metadata,
    Column("id", _RowId, primary_key=True),
    Column("purpose", Text, nullable=False),
    Column("granted_at", Double, nullable=False),
    Column("frees_at", Double, nullable=False),
    _one_of("purpose", "hydrate", "command", "probe", "audit"),
    Index(None, "frees_at"),
    **_churn(free=50),
)

# Counts of requests by what they turned out to be for: kept when the grants are swept.
tallies = Table(
    "tallies",
    metadata,
    Column("name", Text, primary_key=True),
    Column("count", BigInteger, nullable=False),
    **_churn(free=50),
)

# What was measured, added up as it happens: the same however much has been pruned, and however much there is.
measures = Table(
    "measures",
    metadata,
    Column("name", Text, primary_key=True),
    Column("label", Text, primary_key=True),
    Column("count", BigInteger, nullable=False),
    Column("seconds", Double, nullable=False),
    **_churn(free=50),
)

# Deliveries that failed authentication, by why: how often, and when last. Anybody can cause them, so none is kept.
refusals = Table(
    "refusals",
    metadata,
    Column("reason", Text, primary_key=True),
    Column("count", BigInteger, nullable=False),
    Column("last_at", Double, nullable=False),
    **_churn(free=50),
)

# Counts of each hour, for charts: a row for each kind of thing that happened in it.
hours = Table(
    "hours",
    metadata,
    Column("hour", BigInteger, primary_key=True),  # since the Unix epoch
    Column("name", Text, primary_key=True),
    Column("label", Text, primary_key=True),
    Column("count", BigInteger, nullable=False),
    **_churn(free=50),
)

# What one process does for all: it has the lead until then.
leases = Table(
    "leases",
    metadata,
    Column("name", Text, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("until", Double, nullable=False),
    **_churn(free=50),
)

# One row: the last audit of our webhook at Reader.
audits = Table(
    "audits",
    metadata,
    Column("name", Text, primary_key=True),
    Column("claimed_at", Double, nullable=False),
    Column("at", Double),
    Column("attempts", BigInteger, nullable=False, server_default="0"),
    Column("failed", BigInteger, nullable=False, server_default="0"),
    _one_of("name", "webhooks"),
)

# Why nobody may ask Reader anything for now.
pauses = Table(
    "pauses",
    metadata,
    Column("name", Text, primary_key=True),
    Column("until", Double, nullable=False),
    Column("reason", _Foreign, nullable=False),
)

# How many requests a minute Reader allows: what the tier says, what a 429 has taught.
limits = Table(
    "limits",
    metadata,
    Column("name", Text, primary_key=True),
    Column("rpm", BigInteger, nullable=False),
    Column("until", Double, nullable=False),
    _one_of("name", "tier", "learned"),
    CheckConstraint("rpm >= 1", name="rpm_positive"),
)
