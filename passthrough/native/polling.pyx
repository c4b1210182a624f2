"""Polls /dev/fuse for the next request before a thread sleeps, if trials show that this pays.

If caller and thread run on two processors, most of a round trip is the time to wake them in turn,
and a thread that polls need not be woken. But the scheduler may run both on one, and other programs
may need the processors. Then polling takes time from the very caller that sends the next request.
No counter tells the cases apart beforehand. So under load the session tries both ways, for one
trial each, and keeps the better one for a while. Polling is better if it increases the requests a
second by a factor of at least 1.15, and by no smaller factor than the processor time of each
request.

The thread does not call sched_yield(2) between polls. If another program computes, the thread
would get its processor back only after all others have had their turn, and every caller waits as
long. Without the call, a caller on the same processor waits until the limit at most.

The session polls by poll(2). To make read(2) return at once takes O_NONBLOCK, which would apply to
every process that has the descriptor.
"""

from libc.stdint cimport int32_t, int64_t, uint64_t

from passthrough.native.layout cimport ACQUIRE, RELAXED, RELEASE, exchange32, load32, store32
from passthrough.native.libc cimport (
    CLOCK_MONOTONIC, POLLIN, clock_gettime, poll, pollfd, timespec,
)

cdef enum:
    LIMIT_NS = 75000  # a thread polls for so long after its last request
    LOST_NS = 1000000  # a poll that takes so long: another program has had the processor
    SECOND_NS = 1000 * 1000 * 1000
    MIN_SPEEDUP = 115  # in percent; a smaller one may be chance


cdef void wait_for_request(Polling *p, int fd) noexcept nogil:
    """Poll until there is a request, or until the limit.

    Only one thread polls at a time; the others sleep. If the thread loses the processor meanwhile,
    polling is switched off for a while.
    """
    cdef pollfd device
    cdef int64_t before, now, end
    cdef int32_t nobody = 0
    cdef bint found = False
    if not exchange32(&p.polls, &nobody, 1, False, ACQUIRE, RELAXED):
        return
    device.fd = fd
    device.events = POLLIN
    now = _now_ns()
    end = now + LIMIT_NS
    while not found and now < end:
        found = poll(&device, 1, 0) != 0
        before = now
        now = _now_ns()
        if now - before > LOST_NS:
            store32(&p.on, 0, RELAXED)
    store32(&p.polls, 0, RELEASE)


cdef int64_t _now_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return now.tv_sec * SECOND_NS + now.tv_nsec


cdef void sample_polling(
    Polling *p, uint64_t requests, double at_s, double cpu_s
) noexcept nogil:
    """Decide anew at the end of a trial; the main thread calls it in every sample.

    `requests` came since the last sample; `cpu_s` is the processor time of the process so far.
    """
    cdef Trial trial
    p.requests += requests
    p.samples += 1
    if p.under_way and p.samples < SAMPLES_PER_TRIAL:
        return
    if p.under_way:
        trial.requests = p.requests
        trial.seconds = at_s - p.at_s
        trial.cpu_s = cpu_s - p.cpu_s
        judge(p, &trial, at_s)
    p.under_way = True
    p.samples = 0
    p.requests = 0
    p.at_s = at_s
    p.cpu_s = cpu_s


cdef void interrupt_trial(Polling *p) noexcept nogil:
    """Begin another trial with the next sample, after a time without samples."""
    p.under_way = False
    if p.has_baseline:
        p.has_baseline = False
        store32(&p.on, 0, RELAXED)


cdef void judge(Polling *p, const Trial *trial, double at_s) noexcept nogil:
    """Switch polling on or off by the trial that has just ended."""
    cdef bint on = load32(&p.on, RELAXED)
    if p.has_baseline and not on:  # `wait_for_request` has ended the trial of polling
        _leave_off(p, at_s)
    elif trial.requests < LOAD_REQUESTS:
        # The load has ended, or polling has nearly ended it: try no more for a while.
        if on:
            p.until_s = at_s + p.has_baseline * max(p.validity_s, VALIDITY_MS * 1e-3)
        on = p.has_baseline = False
        p.wins = 0
    elif at_s < p.until_s:
        return
    elif not p.has_baseline:
        p.baseline = trial[0]
        p.has_baseline = not on  # the outcome has been valid for long enough
        on = not on
    elif pays(trial, &p.baseline):
        p.has_baseline = False
        p.wins += 1
        on = p.wins == WINS_NEEDED
        if on:
            p.wins = 0
            p.validity_s = VALIDITY_MS * 1e-3
            p.until_s = at_s + p.validity_s
    else:
        on = False
        _leave_off(p, at_s)
    store32(&p.on, on, RELAXED)


cdef void _leave_off(Polling *p, double at_s) noexcept nogil:
    p.has_baseline = False
    p.wins = 0
    p.validity_s = min(2 * max(p.validity_s, VALIDITY_MS * 1e-3), MAX_VALIDITY_MS * 1e-3)
    p.until_s = at_s + p.validity_s


cdef bint pays(const Trial *trial, const Trial *baseline) noexcept nogil:
    """Return whether a trial gains more speed over the baseline than it costs processor time."""
    cdef double speedup = trial.requests / trial.seconds / (baseline.requests / baseline.seconds)
    cdef double cost = trial.cpu_s / trial.requests / (baseline.cpu_s / baseline.requests)
    return speedup * 100 >= MIN_SPEEDUP and speedup >= cost
