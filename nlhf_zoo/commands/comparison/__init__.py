"""The parts of ``nlhf compare``: its file, the contenders, their runs, tables and figure."""
