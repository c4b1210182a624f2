"""The effective options of a volume as the request path reads them."""

from passthrough.core.state cimport Volume


cdef configure(Volume *v, object config, int source_fd)
cdef make_tables(Volume *v, object config, int source_fd)
cdef set_links(Volume *v, bytes directory)
cdef int *array_of(numbers) except NULL
cdef int adopt_tables(Volume *v, int tables_fd) except? -1
