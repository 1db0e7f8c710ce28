"""The MLflow client side: hooks in the user's process, and a child process that writes runs."""
