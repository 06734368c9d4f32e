"""Exports and publishes a checkpoint: python -m export CHECKPOINT --name NAME"""

from export.build import main

if __name__ == "__main__":
    main()
