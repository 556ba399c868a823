"""Timing the operations beside other libraries: what `python cli.py bench` runs.

Every library works in a process of its own (`worker.py`), which the measuring process feeds through pipes
(`pool.py`) and lets run only while it is its turn. `speed.py` takes the turns; `figures.py` says what follows
from the times.
"""
