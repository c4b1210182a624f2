"""The effective options of a volume as the request path reads them."""

from passthrough.native.layout cimport Limits
from passthrough.native.state cimport Volume


cdef configure(Volume *v, object config, int source_fd)
cdef limits_of(Limits *limits, object config, bint handles)
cdef set_links(Volume *v, bytes directory)
