"""Files without a name that the kernel still knows: it is asked to forget them."""

from passthrough.core.state cimport Volume


cdef void sweep(Volume *v) noexcept nogil
cdef int until_sweep(const Volume *v) noexcept nogil
