"""Steps of a request at which a test ends the process, in builds of the kind `steps` alone.

The lower half of the shared word `Header.limits.spare` names one step. Its upper half says how
often that step is passed before. A thread that kills its process marks the word, and the successor
clears the word. So a cleared word tells that the process has ended: its other threads serve on for
a moment, and may send replies.
tests/support/tools/core_operations.py says which operations pass which steps.
"""

from passthrough.core.journal cimport begin_call
from passthrough.core.layout cimport Tables
from passthrough.core.state cimport Thread

cdef extern from *:
    """
    #ifdef PASSFS_STEPS
    #include <signal.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    static inline void passfs_end_at(volatile unsigned int *word, unsigned int number) {
        unsigned int asked = *word, next;
        do {
            if ((asked & 0x7FFFu) != number)
                return;
            next = asked > 0xFFFFu ? asked - 0x10000u : asked | 0x4000u;
        } while (!__atomic_compare_exchange_n(
            word, &asked, next, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
        if (!(next & 0x4000u))
            return;
        syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), SIGKILL);  /* as the sandbox allows */
        for (;;)
            pause();
    }
    static inline void passfs_clear(volatile unsigned int *word) {
        unsigned int asked = *word;
        if (asked & 0x4000u)
            *word = asked & 0x8000u ? asked & 0x3FFFu : 0;
    }
    #define passfs_step_died(tables) passfs_clear(&(tables)->header->limits.spare)
    #define passfs_step_of(tables, number) \\
        ((tables) ? passfs_end_at(&(tables)->header->limits.spare, number) : (void)0)
    #define passfs_step(t, number) passfs_step_of((t)->volume->tables, number)
    #else
    #define passfs_step_died(tables) ((void)0)
    #define passfs_step_of(tables, number) ((void)0)
    #define passfs_step(t, number) ((void)0)
    #endif
    """
    void step "passfs_step"(Thread *t, int number) noexcept nogil
    void step_of "passfs_step_of"(Tables *tables, int number) noexcept nogil
    # Clear the word in a successor, if its predecessor has died at a step.
    void end_of_death "passfs_step_died"(Tables *tables) noexcept nogil


cdef enum Step:
    TAKEN = 1  # read from the device; the journal has nothing of it
    BEGUN = 2  # the journal has its number
    CALLING = 3  # noted: the call that must not be made twice comes next
    MADE = 4  # that call is made
    GRANTING = 5  # a lookup is announced
    GRANTED = 6  # it is counted, and not settled
    COUNTED = 7  # it is settled
    OPENING = 8  # an open file is announced
    OPENED = 9  # it is in the table
    RELEASED = 10  # an open file is taken out of the table, and not closed
    FORGETTING = 11  # lookups to be given back are announced
    FORGOTTEN = 12  # they are given back, and not settled
    SERVED = 13  # the reply is made, and not noted
    ANSWERED = 14  # the reply is noted, and not sent
    SENT = 15  # the reply is sent, and not noted as done


cdef enum:
    DYING = 0x4000  # beside a step: a thread has killed its process there
    TWICE = 0x8000  # beside a step: the successor dies there, too


cdef inline void note_call(Thread *t) noexcept nogil:
    """Note that a call which must not be made twice comes next, in the journal."""
    begin_call(t.journal)
    step(t, CALLING)
