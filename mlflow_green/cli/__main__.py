"""``python -m mlflow_green.cli``: the command where its folder is not on the path."""

from mlflow_green.cli.main import main

main()
