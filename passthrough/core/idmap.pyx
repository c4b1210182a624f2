"""Maps ids between the users of a volume (containers) and the files of the host.

A map has ranges, container:host:count. A caller's ids are mapped to the host, a file's owner is
mapped to the container. An id in no range has no counterpart: no file is created for it, and for an
owner in no range the kernel gets UNMAPPED, as on an idmapped mount.

Squashing comes before the ranges, as in exports(5): the squashed ids act as one id of the host,
the anonymous one. squash=root squashes the user 0 and the group 0, squash=all every id. With
squash=root a caller with one of the two is a squashed caller: it has no supplementary groups.

With `owner`, which squashes every id, each file shows the one owner that the option names. So a
change of owner has no meaning: chown(2) succeeds, without effect, for files of the anonymous user.
"""

from libc.stdint cimport int64_t, uint32_t

from passthrough.core.layout cimport RELAXED, load64
from passthrough.core.libc cimport EPERM
from passthrough.core.rare cimport report
from passthrough.core.state cimport (
    REPORT_UNMAPPED_GID,
    REPORT_UNMAPPED_UID,
    SQUASH_ALL,
    SQUASH_NONE,
    SQUASH_ROOT,
    IdMap,
    Ids,
    Thread,
    Volume,
)

cdef enum:
    ROOT_ID = 0


# From the container to the host


cdef bint _host_id(
    const IdMap *map, int squash, uint32_t anonymous, uint32_t number, uint32_t *out
) noexcept nogil:
    """Find the id of the host that a caller's id acts as; false: there is none."""
    cdef uint32_t index
    cdef int64_t beyond
    if squash == SQUASH_ALL or (squash == SQUASH_ROOT and number == ROOT_ID):
        out[0] = anonymous
        return True
    if not map.count:
        out[0] = number
        return True
    for index in range(map.count):
        beyond = <int64_t>number - map.ranges[index].inside
        if 0 <= beyond < map.ranges[index].count:
            out[0] = <uint32_t>(map.ranges[index].outside + beyond)
            return True
    return False


cdef bint _host_user(const Volume *v, uint32_t uid, uint32_t *out) noexcept nogil:
    return _host_id(&v.users, v.options.squash, v.anonymous.uid, uid, out)


cdef bint _host_group(const Volume *v, uint32_t gid, uint32_t *out) noexcept nogil:
    return _host_id(&v.groups, v.options.squash, v.anonymous.gid, gid, out)


cdef int _unmapped(Volume *v, int what, uint32_t number) noexcept nogil:
    """Log the first unmapped id of a map, because later ones add no information; -EPERM."""
    if not load64(&v.reported[what], RELAXED):
        report(v, what, number, NULL)
    return -EPERM


cdef int to_host(Volume *v, uint32_t uid, uint32_t gid, Ids *out) noexcept nogil:
    """Find the ids of the host that a caller acts as. -EPERM and a line in the log: it has none."""
    if not v.options.restricted:
        out.uid = uid
        out.gid = gid
        return 0
    if not _host_user(v, uid, &out.uid):
        return _unmapped(v, REPORT_UNMAPPED_UID, uid)
    if not _host_group(v, gid, &out.gid):
        return _unmapped(v, REPORT_UNMAPPED_GID, gid)
    return 0


cdef int new_owner(Volume *v, const uint32_t *uid, const uint32_t *gid, Ids *out) noexcept nogil:
    """Find the ids of the host for chown(2); NULL leaves an id as it is. -EPERM as `to_host`."""
    out.uid = out.gid = NO_ID
    if not v.options.restricted:
        if uid != NULL:
            out.uid = uid[0]
        if gid != NULL:
            out.gid = gid[0]
        return 0
    if v.options.shows_owner:
        if uid != NULL or gid != NULL:
            out.uid = v.anonymous.uid  # the host checks that the file has this owner
        return 0
    if uid != NULL and not _host_user(v, uid[0], &out.uid):
        return _unmapped(v, REPORT_UNMAPPED_UID, uid[0])
    if gid != NULL and not _host_group(v, gid[0], &out.gid):
        return _unmapped(v, REPORT_UNMAPPED_GID, gid[0])
    return 0


cdef int new_group(const Volume *v, const uint32_t *gid, uint32_t *out) noexcept nogil:
    """Find the group of the host that chown(2) gives a file; return 1, or 0 if it gives none."""
    return gid != NULL and _host_group(v, gid[0], out)


# From the host to the container


cdef uint32_t _inside_id(
    const IdMap *map, int squash, uint32_t anonymous, uint32_t number
) noexcept nogil:
    """Return the id that the kernel gets for an id of the host; UNMAPPED if no caller acts as it.

    If an id in no range is the anonymous one, squashed callers act as it. With squash=root that is
    container root alone, which becomes the owner. With squash=all it is every caller, so that the
    host's number does no harm.
    """
    cdef uint32_t index
    cdef int64_t beyond
    if not map.count:
        return number
    for index in range(map.count):
        beyond = <int64_t>number - map.ranges[index].outside
        if 0 <= beyond < map.ranges[index].count:
            return <uint32_t>(map.ranges[index].inside + beyond)
    if squash == SQUASH_NONE or number != anonymous:
        return UNMAPPED
    return ROOT_ID if squash == SQUASH_ROOT else number


cdef uint32_t _inside_user(const Volume *v, uint32_t uid) noexcept nogil:
    return _inside_id(&v.users, v.options.squash, v.anonymous.uid, uid)


cdef uint32_t _inside_group(const Volume *v, uint32_t gid) noexcept nogil:
    return _inside_id(&v.groups, v.options.squash, v.anonymous.gid, gid)


cdef void shown_ids(const Volume *v, uint32_t uid, uint32_t gid, Ids *out) noexcept nogil:
    """Find the owner that replies show for a file of the host.

    An unmapped group is UNMAPPED beside an unmapped user, and UNMAPPED_GROUP beside a mapped user.
    """
    out.uid = uid
    out.gid = gid
    if not v.options.restricted:
        return
    if v.options.shows_owner:
        out[0] = v.shown
        return
    out.uid = _inside_user(v, uid)
    if out.uid == UNMAPPED:
        out.gid = UNMAPPED
        return
    out.gid = _inside_group(v, gid)
    if out.gid == UNMAPPED:
        out.gid = UNMAPPED_GROUP


cdef bint lacks_user(const Volume *v, uint32_t uid) noexcept nogil:
    """Return whether no caller acts as a user of the host."""
    return _inside_user(v, uid) == UNMAPPED


cdef bint lacks_group(const Volume *v, uint32_t gid) noexcept nogil:
    """Return whether no caller acts with a group of the host."""
    return _inside_group(v, gid) == UNMAPPED


cdef bint may_have_group(const Volume *v, uint32_t gid) noexcept nogil:
    """Return whether an unsquashed caller may have a supplementary group of the host.

    With squash=root it cannot have root's group, and never an unmapped group.
    """
    cdef uint32_t inside = _inside_group(v, gid)
    return inside != ROOT_ID and inside != UNMAPPED


# Squashing


cdef bint squashes(const Thread *t, uint32_t uid, uint32_t gid) noexcept nogil:
    """Return whether a caller is squashed, and so has no supplementary groups.

    A caller with an id that the kernel cannot express, which no user has, is squashed as well.
    """
    if t.volume.options.squash == SQUASH_NONE:
        return False
    if t.volume.options.squash == SQUASH_ALL or uid == ROOT_ID or gid == ROOT_ID:
        return True
    return uid == NO_ID or gid == NO_ID


cdef int acts_as(Thread *t, Ids *out) noexcept nogil:
    """Find the ids that the worker acts as for the caller of the request in hand.

    An unsquashed caller without a counterpart acts as NO_FILES_ID. -EPERM: a squashed one without.
    """
    cdef uint32_t uid = t.request.uid, gid = t.request.gid
    cdef bint user = _host_user(t.volume, uid, &out.uid)
    cdef bint group = _host_group(t.volume, gid, &out.gid)
    if user and group:
        return 0
    if squashes(t, uid, gid):
        return -EPERM
    if not user:
        out.uid = NO_FILES_ID
    if not group:
        out.gid = NO_FILES_ID
    return 0
