"""The parts of ``nlhf compare``: its file, the contenders, their runs, the tables and the figure."""
