"""Which exceptions are a user's to mend, and the exit code each ends a command with."""

from __future__ import annotations

import errno
import sys

# module -> {exception: exit code}; looked up only where the module is loaded, so that nothing is imported for it
_CODES = {
    "scaling.plan": {"PlanError": 2},
    "scaling.tables": {"TableFileError": 2},
    "scaling.store": {"Locked": 4, "LeaseLost": 4, "StoreError": 2},
    "scaling.files": {"CorruptArtifact": 2},
    "scaling.fit": {"FitOptionError": 2},
    "scaling.executors": {"ExecutorError": 2},
    "scaling.source_tables": {"ImportRefused": 2},
    "models.splits": {"DataError": 2},
    "models.features": {"FeatureError": 2},
    "models.fidelity": {"FidelityError": 2},
    "analysis.table": {"TableError": 2},
    "analysis.inputs": {"FitError": 2},
    "analysis.figures": {"FigureError": 2},
}


# of the operating system's errors, those that say something of the user's machine and not of this code
_ENVIRONMENT = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


def exit_code(error: Exception) -> int | None:
    """The exit code of a known error, or None for one that is a bug."""
    if isinstance(error, OSError) and error.errno in _ENVIRONMENT:
        return 2
    for module, codes in _CODES.items():
        loaded = sys.modules.get(module)
        for name, code in codes.items():
            if loaded is not None and isinstance(error, getattr(loaded, name, ())):
                return code
    return None
