"""Delivery of the ledger's alerts: written once, sent at least once, never from a job's path."""
