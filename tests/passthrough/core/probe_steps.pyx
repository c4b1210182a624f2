"""The steps at which a build of the kind `steps` ends, for tests."""

from passthrough.core cimport steps
from passthrough.core.layout cimport Header

cdef extern from *:
    """
    #ifdef PASSFS_STEPS
    #define PASSFS_HAS_STEPS 1
    #else
    #define PASSFS_HAS_STEPS 0
    #endif
    """
    const int PASSFS_HAS_STEPS

cdef Header header

BUILT = bool(PASSFS_HAS_STEPS)
WORD_AT = <char *>&header.limits.spare - <char *>&header
TWICE = steps.TWICE
DYING = steps.DYING
STEPS = {
    "TAKEN": steps.TAKEN, "BEGUN": steps.BEGUN, "CALLING": steps.CALLING, "MADE": steps.MADE,
    "GRANTING": steps.GRANTING, "GRANTED": steps.GRANTED, "COUNTED": steps.COUNTED,
    "OPENING": steps.OPENING, "OPENED": steps.OPENED, "RELEASED": steps.RELEASED,
    "FORGETTING": steps.FORGETTING, "FORGOTTEN": steps.FORGOTTEN, "SERVED": steps.SERVED,
    "ANSWERED": steps.ANSWERED, "SENT": steps.SENT,
}
