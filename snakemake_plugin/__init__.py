"""The Snakemake side: translates jobs in, decisions out; all else is in mlflow_green."""
