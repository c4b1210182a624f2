"""Notes the request in which a thread crashes, so that the next worker can refuse it.

A signal of a crash is handled once: the handler counts the crash in the journal of its thread, and
notes the request in the control page (worker/control.py). The signal's default action then ends the
process. The handler calls only what a
handler may call, signal-safety(7). It runs on a stack of its own: the crash may be an overflow of
the thread's. `note_crash` does the same for a thread that ends the process by itself.
"""

from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.string cimport memset

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer

from passthrough.core.journal cimport begin_request
from passthrough.core.layout cimport RELEASE, store32
from passthrough.core.libc cimport SYS_gettid, errno, pid_t, syscall

cdef extern from "<signal.h>" nogil:
    ctypedef struct sigset_t:
        pass
    ctypedef struct siginfo_t:
        int si_code
    ctypedef struct stack_t:
        void *ss_sp
        int ss_flags
        size_t ss_size
    struct struct_sigaction "sigaction":
        void (*sa_sigaction)(int number, siginfo_t *info, void *context) noexcept nogil
        int sa_flags
    enum:
        SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT
        SA_SIGINFO, SA_ONSTACK, SA_RESETHAND
    int sigaction(int number, const struct_sigaction *action, struct_sigaction *before)
    int sigaltstack(const stack_t *stack, stack_t *before)

cdef extern from "<unistd.h>" nogil:
    pid_t getpid()

cdef extern from "<sys/syscall.h>" nogil:
    enum:
        SYS_tgkill

cdef extern from * nogil:
    """
    /* In the block that the C library has for each thread from its start: no access allocates. */
    static __thread void *passfs_serving __attribute__((tls_model("initial-exec")));
    """
    void *serving "passfs_serving"


# The crash in the control page; one writer, for the first crash ends the process.
cdef struct Crash:
    uint32_t opcode
    uint32_t is_set
    uint64_t nodeid

cdef Crash *_crash = NULL
cdef Py_buffer _page  # never given back: a signal may come at any time


def catch_crashes(page not None, Py_ssize_t at):
    """Note crashes in `page`, a buffer that can be written, at the byte `at`; of this process.

    Raises:
        OSError: there is no handler to be had.
    """
    global _crash
    cdef struct_sigaction action
    cdef int number
    if _crash == NULL:
        PyObject_GetBuffer(page, &_page, PyBUF_WRITABLE)
        if at < 0 or at % 8 or at + <Py_ssize_t>sizeof(Crash) > _page.len:
            PyBuffer_Release(&_page)
            raise ValueError("no room for a crash there")
        _crash = <Crash *>(<char *>_page.buf + at)
    memset(&action, 0, sizeof(action))
    action.sa_sigaction = _crashed
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESETHAND
    for number in (SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT):
        if sigaction(number, &action, NULL) < 0:
            raise OSError(errno, "sigaction(2)")


cdef void begin_thread(Thread *t, char *stack) noexcept nogil:
    """Have crashes of the calling thread noted as of the requests of `t`.

    `stack` has CRASH_STACK bytes, and outlives the thread's work. If the kernel wants more, the
    handler runs on the thread's own stack.
    """
    global serving
    cdef stack_t alternate
    serving = t
    memset(&alternate, 0, sizeof(alternate))
    alternate.ss_sp = stack
    alternate.ss_size = CRASH_STACK
    sigaltstack(&alternate, NULL)


cdef void note_crash() noexcept nogil:
    """Note that the calling thread ends the process in its present request, if it has one."""
    cdef const Thread *t = <const Thread *>serving
    if t == NULL or t.request == NULL or t.journal == NULL:
        return
    if t.journal.done == t.request.unique:
        return
    if t.journal.unique != t.request.unique:  # it was about to begin
        begin_request(t.journal, t.request.unique)
    t.journal.guilty += 1
    if _crash == NULL:
        return
    _crash.opcode = t.request.opcode
    _crash.nodeid = t.request.nodeid
    store32(<int32_t *>&_crash.is_set, 1, RELEASE)


cdef void _crashed(int number, siginfo_t *info, void *context) noexcept nogil:
    """Note the crash. The kernel has restored the default action, SA_RESETHAND.

    A fault comes again on return. A signal that a process has sent does not.
    """
    note_crash()
    if info.si_code <= 0:
        syscall(SYS_tgkill, <long>getpid(), <long>syscall(SYS_gettid), <long>number)
