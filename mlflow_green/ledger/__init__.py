"""Accounts, holds and the journal: what was reserved and what was spent, in one transaction."""
