"""The first schema."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "1.1"
down_revision = None
branch_labels = None
depends_on = None


def _churn(free: int | None = None) -> dict[str, Any]:
    fill = {} if free is None else {"fillfactor": 100 - free}
    return {"postgresql_with": fill | {"autovacuum_vacuum_scale_factor": 0.01, "autovacuum_vacuum_threshold": 500}}


def _index(table: str, *columns: str, only: str | None = None, name: str | None = None) -> None:
    where: dict[str, Any] = {} if only is None else {"sqlite_where": sa.text(only), "postgresql_where": sa.text(only)}
    op.create_index(op.f(name or f"ix_{table}_{'_'.join(columns)}"), table, list(columns), unique=False, **where)


def upgrade() -> None:
    op.create_table(
        "chunks",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("page", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint("length(data) <= 1048576", name=op.f("ck_chunks_at_most_a_mebibyte")),
        sa.PrimaryKeyConstraint("job_id", "generation", "page", "number"),
        **_churn(),
    )
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER TABLE chunks ALTER COLUMN data SET STORAGE EXTERNAL")
    op.create_table(
        "deliveries",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("received_at", sa.Double(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("event", sa.Text(), nullable=True),
        sa.Column("job_id", sa.Text(), nullable=True),
        sa.Column("delivery_id", sa.Text(), nullable=True),
        sa.Column("signed_at", sa.BigInteger(), nullable=True),
        sa.Column("key", sa.Text(), nullable=True),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint(
            "(outcome = 'quarantined') = (reason IS NOT NULL)",
            name=op.f("ck_deliveries_quarantined_says_why"),
        ),
        sa.CheckConstraint("outcome <> 'accepted' OR job_id IS NOT NULL", name=op.f("ck_deliveries_accepted_names_a_job")),
        sa.CheckConstraint(
            "outcome = 'accepted' OR outcome = 'ignored' OR outcome = 'quarantined'", name=op.f("ck_deliveries_outcome_known")
        ),
        sa.PrimaryKeyConstraint("id"),
        **_churn(),
    )
    _index("deliveries", "outcome", "id", only="outcome <> 'accepted'", name="ix_deliveries_set_aside")
    op.create_table(
        "events",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("stall", sa.Integer(), server_default="0", nullable=False),
        sa.CheckConstraint(
            "type = 'job.completed' OR type = 'job.failed' OR type = 'job.cancelled' OR type = 'job.stalled'",
            name=op.f("ck_events_type_known"),
        ),
        sa.CheckConstraint("(type = 'job.stalled') = (stall > 0)", name=op.f("ck_events_stalled_says_which")),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("job_id", "generation", "stall"),
        **_churn(),
    )
    _index("events", "created_at", "id")
    op.create_table(
        "grants",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("granted_at", sa.Double(), nullable=False),
        sa.Column("frees_at", sa.Double(), nullable=False),
        sa.CheckConstraint(
            "purpose = 'hydrate' OR purpose = 'command' OR purpose = 'probe' OR purpose = 'audit'",
            name=op.f("ck_grants_purpose_known"),
        ),
        sa.PrimaryKeyConstraint("id"),
        **_churn(free=50),
    )
    _index("grants", "frees_at")
    op.create_table(
        "history",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("what", sa.Text(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=True),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("last_at", sa.Double(), nullable=False),
        sa.Column("count", sa.Integer(), server_default="1", nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.CheckConstraint(
            "what = 'asked' OR what = 'heard' OR what = 'looked' OR what = 'noticed' OR what = 'page' OR what = 'again' "
            "OR what = 'unchanged' OR what = 'trouble' OR what = 'parked' OR what = 'retried' "
            "OR what = 'given up' OR what = 'reopened' OR what = 'restored'",
            name=op.f("ck_history_what_known"),
        ),
        sa.CheckConstraint("count >= 1 AND number >= 1", name=op.f("ck_history_counts_from_one")),
        sa.PrimaryKeyConstraint("id"),
        **_churn(free=20),
    )
    _index("history", "job_id", "number")
    op.create_table(
        "hook_deliveries",
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("hook", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("due_at", sa.Double(), nullable=True),
        sa.Column("delivered_at", sa.Double(), nullable=True),
        sa.Column("last_status", sa.Integer(), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("lease_owner", sa.Text(), nullable=True),
        sa.Column("lease_until", sa.Double(), nullable=True),
        sa.Column("fence", sa.BigInteger(), server_default="0", nullable=False),
        sa.CheckConstraint(
            "(state = 'delivered') = (delivered_at IS NOT NULL)",
            name=op.f("ck_hook_deliveries_delivered_says_when"),
        ),
        sa.CheckConstraint("(lease_owner IS NULL) = (lease_until IS NULL)", name=op.f("ck_hook_deliveries_lease_is_whole")),
        sa.CheckConstraint("(state = 'pending') = (due_at IS NOT NULL)", name=op.f("ck_hook_deliveries_pending_is_due")),
        sa.CheckConstraint(
            "state = 'pending' OR state = 'delivered' OR state = 'dead'", name=op.f("ck_hook_deliveries_state_known")
        ),
        sa.PrimaryKeyConstraint("event_id", "hook"),
        **_churn(free=30),
    )
    _index("hook_deliveries", "hook", "due_at", only="due_at IS NOT NULL")
    _index("hook_deliveries", "job_id", "generation", only="due_at IS NOT NULL")
    _index("hook_deliveries", "created_at", only="state = 'dead'")
    _index("hook_deliveries", "hook", "created_at")
    op.create_table(
        "hook_attempts",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("hook", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("answer", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "outcome = 'delivered' OR outcome = 'failed' OR outcome = 'dead' OR outcome = 'later'",
            name=op.f("ck_hook_attempts_outcome_known"),
        ),
        sa.CheckConstraint("number >= 1 AND seconds >= 0", name=op.f("ck_hook_attempts_was_made")),
        sa.PrimaryKeyConstraint("id"),
        **_churn(),
    )
    _index("hook_attempts", "event_id", "hook")
    op.create_table(
        "hooks",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("events", sa.Text(), nullable=False),
        sa.Column("declared_at", sa.Double(), nullable=False),
        sa.Column("retired", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("failures", sa.Integer(), server_default="0", nullable=False),
        sa.Column("failing_since", sa.Double(), nullable=True),
        sa.Column("paused_at", sa.Double(), nullable=True),
        sa.Column("paused_why", sa.Text(), nullable=True),
        sa.Column("probe_at", sa.Double(), nullable=True),
        sa.CheckConstraint("(failures > 0) = (failing_since IS NOT NULL)", name=op.f("ck_hooks_failing_since_the_first")),
        sa.CheckConstraint("(paused_at IS NULL) = (paused_why IS NULL)", name=op.f("ck_hooks_paused_says_why")),
        sa.CheckConstraint("probe_at IS NULL OR paused_at IS NOT NULL", name=op.f("ck_hooks_probed_is_paused")),
        sa.CheckConstraint(
            "kind = 'python' OR kind = 'http' OR kind = 'command' OR kind = 'broker'", name=op.f("ck_hooks_kind_known")
        ),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), server_default="unknown", nullable=False),
        sa.Column("completed", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("total", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("document", sa.LargeBinary(), nullable=True),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("tracked_at", sa.Double(), nullable=False),
        sa.Column("submission_id", sa.Text(), nullable=True),
        sa.Column("generation", sa.Integer(), server_default="0", nullable=False),
        sa.Column("settled_generation", sa.Integer(), server_default="0", nullable=False),
        sa.Column("mark", sa.Text(), nullable=True),
        sa.Column("result_total", sa.BigInteger(), nullable=True),
        sa.Column("restarts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("requests", sa.Integer(), server_default="0", nullable=False),
        sa.Column("page_limit", sa.Integer(), server_default="100", nullable=False),
        sa.Column("noticed_at", sa.Double(), nullable=True),
        sa.Column("discovered_by", sa.Text(), nullable=True),
        sa.Column("told", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("due_at", sa.Double(), nullable=True),
        sa.Column("expects_end", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("cue", sa.Integer(), server_default="0", nullable=False),
        sa.Column("claimed_cue", sa.Integer(), server_default="0", nullable=False),
        sa.Column("cued_by", sa.Text(), nullable=True),
        sa.Column("looked_at", sa.Double(), nullable=True),
        sa.Column("progressed_at", sa.Double(), nullable=True),
        sa.Column("heard", sa.BigInteger(), nullable=True),
        sa.Column("stalls", sa.Integer(), server_default="0", nullable=False),
        sa.Column("stalled", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("late_looks", sa.Integer(), server_default="0", nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("misses", sa.Integer(), server_default="0", nullable=False),
        sa.Column("trouble", sa.Text(), nullable=True),
        sa.Column("retry", sa.Text(), nullable=True),
        sa.Column("retries", sa.Integer(), server_default="0", nullable=False),
        sa.Column("held", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("refetch", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("lease_owner", sa.Text(), nullable=True),
        sa.Column("lease_until", sa.Double(), nullable=True),
        sa.Column("fence", sa.BigInteger(), server_default="0", nullable=False),
        sa.CheckConstraint("(lease_owner IS NULL) = (lease_until IS NULL)", name=op.f("ck_jobs_lease_is_whole")),
        sa.CheckConstraint(
            "discovered_by = 'webhook' OR discovered_by = 'poll' OR discovered_by = 'stream'",
            name=op.f("ck_jobs_discovered_by_known"),
        ),
        sa.CheckConstraint(
            "source = 'submit' OR source = 'track' OR source = 'webhook' OR source = 'stream'", name=op.f("ck_jobs_source_known")
        ),
        sa.CheckConstraint(
            "state <> 'hydrating' OR (generation > settled_generation AND mark IS NOT NULL)",
            name=op.f("ck_jobs_hydrating_has_a_generation"),
        ),
        sa.CheckConstraint(
            "state <> 'settled' OR (generation >= 1 AND settled_generation = generation)", name=op.f("ck_jobs_settled_is_newest")
        ),
        sa.CheckConstraint("state IN ('settled', 'parked') OR due_at IS NOT NULL", name=op.f("ck_jobs_unsettled_is_due")),
        sa.CheckConstraint(
            "state = 'watching' OR state = 'hydrating' OR state = 'settled' OR state = 'parked'", name=op.f("ck_jobs_state_known")
        ),
        sa.CheckConstraint("page_limit BETWEEN 1 AND 100", name=op.f("ck_jobs_page_limit_in_range")),
        sa.CheckConstraint("retry = 'due' OR retry = 'asked' OR retry = 'refused'", name=op.f("ck_jobs_retry_known")),
        sa.CheckConstraint("retry IS NULL OR (state = 'settled' AND due_at IS NOT NULL)", name=op.f("ck_jobs_retry_is_due")),
        sa.CheckConstraint(
            "NOT held OR (settled_generation >= 1 AND due_at IS NOT NULL AND (state <> 'settled' OR retry IS NOT NULL))",
            name=op.f("ck_jobs_held_is_due"),
        ),
        sa.CheckConstraint("settled_generation BETWEEN 0 AND generation", name=op.f("ck_jobs_settled_is_opened")),
        sa.PrimaryKeyConstraint("id"),
        **_churn(free=30),
    )
    _index("jobs", "due_at", "cued_by", only="cued_by IS NOT NULL", name="ix_jobs_cued")
    _index("jobs", "due_at", only="due_at IS NOT NULL")
    _index("jobs", "tracked_at")
    _index("jobs", "state", "tracked_at")
    _index("jobs", "status", "tracked_at")
    _index("jobs", "noticed_at", only="noticed_at IS NOT NULL AND source <> 'webhook'")
    _index("jobs", "state", "tracked_at", only="state = 'settled' AND status <> 'cancelled' AND NOT told", name="ix_jobs_missed")
    op.create_table(
        "audits",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("claimed_at", sa.Double(), nullable=False),
        sa.Column("at", sa.Double(), nullable=True),
        sa.Column("attempts", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("failed", sa.BigInteger(), server_default="0", nullable=False),
        sa.CheckConstraint("name = 'webhooks'", name=op.f("ck_audits_name_known")),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "leases",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("until", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
        **_churn(free=50),
    )
    op.create_table(
        "limits",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("rpm", sa.BigInteger(), nullable=False),
        sa.Column("until", sa.Double(), nullable=False),
        sa.CheckConstraint("name = 'tier' OR name = 'learned'", name=op.f("ck_limits_name_known")),
        sa.CheckConstraint("rpm >= 1", name=op.f("ck_limits_rpm_positive")),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "hours",
        sa.Column("hour", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("hour", "name", "label"),
        **_churn(free=50),
    )
    op.create_table(
        "outcomes",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("document", sa.LargeBinary(), nullable=False),
        sa.Column("results", sa.Integer(), nullable=False),
        sa.Column("failed_urls", sa.Integer(), nullable=False),
        sa.Column("verified", sa.Boolean(), nullable=False),
        sa.Column("discovered_by", sa.Text(), nullable=False),
        sa.Column("requests", sa.Integer(), nullable=False),
        sa.Column("ended_at", sa.Double(), nullable=True),
        sa.Column("noticed_at", sa.Double(), nullable=False),
        sa.Column("settled_at", sa.Double(), nullable=False),
        sa.Column("pruned_at", sa.Double(), nullable=True),
        sa.Column("swept", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.CheckConstraint(
            "discovered_by = 'webhook' OR discovered_by = 'poll' OR discovered_by = 'stream'",
            name=op.f("ck_outcomes_discovered_by_known"),
        ),
        sa.CheckConstraint(
            "status = 'completed' OR status = 'failed' OR status = 'cancelled'", name=op.f("ck_outcomes_status_known")
        ),
        sa.CheckConstraint("failed_urls BETWEEN 0 AND results", name=op.f("ck_outcomes_failed_within_results")),
        sa.CheckConstraint("generation >= 1", name=op.f("ck_outcomes_generation_positive")),
        sa.CheckConstraint("NOT swept OR pruned_at IS NOT NULL", name=op.f("ck_outcomes_swept_was_pruned")),
        sa.PrimaryKeyConstraint("job_id", "generation"),
    )
    _index("outcomes", "settled_at", "job_id", "generation", only="NOT swept", name="ix_outcomes_kept")
    op.create_table(
        "pauses",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("until", sa.Double(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "results",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("page", sa.Integer(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("start", sa.BigInteger(), nullable=False),
        sa.Column("length", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("position >= page AND page >= 0", name=op.f("ck_results_position_on_page")),
        sa.CheckConstraint("start >= 0 AND length > 0", name=op.f("ck_results_slice_not_empty")),
        sa.PrimaryKeyConstraint("job_id", "generation", "position"),
        **_churn(),
    )
    _index("results", "job_id", "generation", "position", only="error IS NOT NULL", name="ix_results_failed")
    op.create_table(
        "seen",
        sa.Column("key", sa.Text().with_variant(sa.Text(collation="C"), "postgresql"), nullable=False),
        sa.Column("first_at", sa.Double(), nullable=False),
        sa.Column("hits", sa.Integer(), server_default="1", nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.CheckConstraint("hits >= 1", name=op.f("ck_seen_hits_positive")),
        sa.PrimaryKeyConstraint("key"),
        sqlite_with_rowid=False,
        **_churn(),
    )
    _index("seen", "first_at", "key", only="substr(key, 1, 1) = 'u'")
    op.create_table(
        "submissions",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("idempotency_key", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("due_at", sa.Double(), nullable=True),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("job_id", sa.Text(), nullable=True),
        sa.Column("trouble", sa.Text(), nullable=True),
        sa.Column("lease_owner", sa.Text(), nullable=True),
        sa.Column("lease_until", sa.Double(), nullable=True),
        sa.Column("fence", sa.BigInteger(), server_default="0", nullable=False),
        sa.CheckConstraint("(lease_owner IS NULL) = (lease_until IS NULL)", name=op.f("ck_submissions_lease_is_whole")),
        sa.CheckConstraint("(state = 'pending') = (due_at IS NOT NULL)", name=op.f("ck_submissions_pending_is_due")),
        sa.CheckConstraint("(state = 'sent') = (job_id IS NOT NULL)", name=op.f("ck_submissions_sent_has_a_job")),
        sa.CheckConstraint(
            "state = 'pending' OR state = 'sent' OR state = 'refused' OR state = 'expired'",
            name=op.f("ck_submissions_state_known"),
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("idempotency_key"),
    )
    _index("submissions", "due_at", only="due_at IS NOT NULL")
    _index("submissions", "created_at", "id", only="due_at IS NULL")
    op.create_table(
        "tallies",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
        **_churn(free=50),
    )
    op.create_table(
        "measures",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", "label"),
        **_churn(free=50),
    )
    op.create_table(
        "refusals",
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("last_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("reason"),
        **_churn(free=50),
    )
