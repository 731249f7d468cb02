"""Runs tidemark.ipynb from top to bottom and writes it with its outputs: python run.py OUT.ipynb

Where a cell fails, or takes longer than two minutes, it says which and exits with 1; what ran until then is written all the same.
"""

import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellControlSignal

notebook = nbformat.read(Path(__file__).with_name("tidemark.ipynb"), as_version=4)
try:
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
except CellControlSignal as error:
    # A traceback comes in colours.
    sys.exit(re.sub(r"\x1b\[[0-9;]*m", "", str(error)))
finally:
    nbformat.write(notebook, sys.argv[1])
