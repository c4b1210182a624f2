"""The polling of one channel for tests, without a session; the test says how time passes."""

from passthrough.native.polling cimport (
    LOAD_REQUESTS, MAX_VALIDITY_MS, SAMPLES_PER_TRIAL, VALIDITY_MS, Polling, Trial,
    interrupt_trial, judge, pays, sample_polling, wait_for_request,
)

LOAD = LOAD_REQUESTS
SAMPLES = SAMPLES_PER_TRIAL
VALIDITY = VALIDITY_MS * 1e-3
MAX_VALIDITY = MAX_VALIDITY_MS * 1e-3

cdef double TRIAL_S = 0.02


cdef class Probe:
    """The polling of one channel."""

    cdef Polling polling
    cdef double at_s
    cdef double cpu_s

    def __cinit__(self):
        self.at_s = 1000

    @property
    def on(self):
        """True if a thread polls before it reads."""
        return bool(self.polling.on)

    def judge(self, requests, cpu_s):
        """End a trial of 20 ms; return whether polling is on then."""
        cdef Trial trial
        trial.requests, trial.seconds, trial.cpu_s = requests, TRIAL_S, cpu_s
        self.at_s += TRIAL_S
        judge(&self.polling, &trial, self.at_s)
        return self.on

    def sample(self, requests, cpu_s):
        """Take a sample after 5 ms; return whether polling is on then."""
        self.at_s += 0.005
        self.cpu_s += cpu_s
        sample_polling(&self.polling, requests, self.at_s, self.cpu_s)
        return self.on

    def interrupt(self):
        """Take no samples for a second."""
        self.at_s += 1
        interrupt_trial(&self.polling)

    def lose_processor(self):
        """Switch polling off, as a thread does."""
        self.polling.on = 0

    def wait(self, int fd, bint beside=False):
        """Poll; with `beside`, another thread polls already."""
        self.polling.polls = beside
        with nogil:
            wait_for_request(&self.polling, fd)
        assert self.polling.polls == beside


def pays_beside(trial, baseline):
    """Return whether the work of a trial (requests, seconds, processor time) is better."""
    cdef Trial first
    cdef Trial second
    first.requests, first.seconds, first.cpu_s = trial
    second.requests, second.seconds, second.cpu_s = baseline
    return bool(pays(&first, &second))
