"""The owners' locks as the next worker finds them, in flat memory that workers share."""

from libc.stdint cimport int32_t, uint32_t, uint64_t

from passthrough.core.held cimport Held, Lock


cdef enum:
    MOST_RECORDS = 1 << 16
    MOST_KEPT = 21000  # ranges of one owner on one file
    MOST_OPENED = 4096  # open files by which one owner locks one file
    FEW_KEPT = 6  # so many ranges have room in the record, as SQLite holds three at most
    FEW_OPENED = 4
    MOST_NAMED = 256


# The locks of an owner; the ranges, `Lock`, follow.
cdef struct Kept:
    uint32_t count
    uint32_t pid
    uint32_t wrote
    uint32_t spare


cdef struct FewKept:
    Kept kept
    Lock ranges[FEW_KEPT]


# The description of an owner of locks; the store of `nodeid` publishes it.
cdef struct Record:
    uint64_t nodeid  # 0: free
    uint64_t owner
    int32_t described  # descriptor << 1 | writable
    uint32_t current  # which of two copies of `Kept` is in force, and LARGE
    uint32_t opened_count
    uint32_t spread  # not 0: memory of the record's area has been used
    uint64_t opened[FEW_OPENED]  # the fh of each open file by which the owner has locked
    FewKept copies[2]
    uint32_t next  # derived: of a free one, 1 + the index of the next free one
    uint32_t spare


# The requests that INTERRUPT has named last.
cdef struct Named:
    uint64_t numbers[MOST_NAMED]
    uint32_t next
    uint32_t spare


cdef struct Shared:
    int32_t used  # not 0: there has been a lock of bytes
    uint32_t end  # records from here on have never been used
    Named named


cdef struct Records:
    Shared *shared
    Record *at
    char *areas
    int fd  # of the memory
    uint32_t free  # 1 + the index of a free record; 0: none below `end`


cdef int begin_records(Records *r, int *fd) noexcept nogil
cdef void end_records(Records *r) noexcept nogil
cdef bint are_records_sound(const Records *r) noexcept nogil
cdef void recover_records(Records *r) noexcept nogil

cdef Record *add_record(
    Records *r, uint64_t nodeid, uint64_t owner, int fd, bint writable
) noexcept nogil
cdef void remove_record(Records *r, Record *record) noexcept nogil
cdef void set_description(Record *record, int fd, bint writable) noexcept nogil
cdef bint keep_opened(Records *r, Record *record, uint64_t fh) noexcept nogil
cdef bint was_opened(const Records *r, const Record *record, uint64_t fh) noexcept nogil
cdef void keep_held(
    Records *r, Record *record, const Held *held, uint32_t pid, bint wrote
) noexcept nogil
cdef const Kept *kept_of(const Records *r, const Record *record) noexcept nogil


cdef inline const Lock *ranges_of(const Kept *kept) noexcept nogil:
    return <const Lock *>(kept + 1)
