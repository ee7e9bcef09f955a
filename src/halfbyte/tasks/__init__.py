"""What the commands do, as functions of Python: work on models that are named as `load` names them.

Each function takes the options of its command and returns a frozen dataclass, which shows itself as a table in a
notebook.
"""
