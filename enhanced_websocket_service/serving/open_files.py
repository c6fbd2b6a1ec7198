"""The limit on open files of this process, of which every connection needs one."""

import resource


def allow_files(wanted: int) -> int | None:
    """Raise this process's soft limit to ``wanted``, as far as its hard limit allows; never lower it.

    :returns: how many it may have open now; ``None`` where there is no such limit.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return None
    if soft >= wanted:
        return soft
    target = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
    except (OSError, ValueError):
        return soft  # macOS names an infinite hard limit and refuses large numbers
    return target
