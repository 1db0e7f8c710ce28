"""Tables and pages for people; they read the ledger and measure nothing."""
