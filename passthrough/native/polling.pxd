"""Polling of /dev/fuse: how long a thread polls, and whether polling pays."""

from libc.stdint cimport int32_t, uint64_t


cdef enum:
    # The samples (watch.pyx) in one trial, and the requests in it that are a load.
    SAMPLES_PER_TRIAL = 4
    LOAD_REQUESTS = 80
    # An outcome is valid for so many ms. Each time that polling does not pay, the validity
    # doubles, up to the maximum.
    VALIDITY_MS = 500
    MAX_VALIDITY_MS = 4000
    # Polling must pay in this many trials in a row.
    WINS_NEEDED = 2


# The work of the process in some time.
cdef struct Trial:
    uint64_t requests
    double seconds
    double cpu_s  # processor time


cdef struct Polling:
    int32_t on  # a thread calls `wait_for_request` before it reads; any thread may switch it off
    int32_t polls  # a thread is polling
    # Of the main thread.
    double until_s  # the outcome is valid
    double validity_s
    bint has_baseline
    Trial baseline
    int wins
    # The trial under way.
    bint under_way
    int samples
    uint64_t requests
    double at_s
    double cpu_s


cdef void wait_for_request(Polling *p, int fd) noexcept nogil
cdef void sample_polling(
    Polling *p, uint64_t requests, double at_s, double cpu_s
) noexcept nogil
cdef void interrupt_trial(Polling *p) noexcept nogil
cdef void judge(Polling *p, const Trial *trial, double at_s) noexcept nogil
cdef bint pays(const Trial *trial, const Trial *baseline) noexcept nogil
