"""What the memory manager counts: one list of ints, indexed by `Event`, bumped on the hot paths."""

from __future__ import annotations

from enum import IntEnum


class Event(IntEnum):
    """One countable event. The first block are faults by how they ended."""

    FAULT_ZERO_PAGE = 0  # a read of untouched anonymous memory: the shared zero page
    FAULT_DEMAND_ZERO = 1  # a write to untouched memory: a zeroed frame
    FAULT_UPGRADE = 2  # a write to a page that was ours alone: permission only
    FAULT_COPY = 3  # copy-on-write
    FAULT_FILE = 4  # a page of a file, mapped in place
    FAULT_SHARED = 5  # a page of shared anonymous memory
    FAULT_STACK = 6  # the stack grew (the page itself is counted too)
    FAULT_SPURIOUS = 7  # the entry was fine by the time it was looked at
    FAULT_ACCESS = 8  # refused: SIGSEGV
    FAULT_BUS = 9  # nothing behind the page: SIGBUS
    FAULT_OUT_OF_MEMORY = 10
    FILE_AROUND = 11  # pages of a file mapped beside the one that faulted
    FLUSH_PAGE = 12
    FLUSH_ALL = 13
    FLUSH_CODE = 14
    COPIED_PAGES = 15  # pages whose bytes were copied by the memory manager
    ZEROED_PAGES = 16  # frames cleared because they had been used before
    WRITABLE_EXECUTABLE = 17  # mappings that are or were both writable and executable
    FAULT_ACCESS_FLAG = 18  # an access to note where the MMU notes none itself: ACCESSED or DIRTY
    WRITTEN_BACK = 19  # dirty pages of files that msync made clean
    INTERRUPT = 20  # sent to another CPU, for it to flush
    INTERRUPT_TAKEN = 21  # by a CPU that was told to flush
    BROADCAST = 22  # of an invalidation to all CPUs, and waited for
    ROOT_SWITCH = 23  # between the two roots of a split address space
    HUGE_FAULT = 24  # a fault that brought a huge page
    HUGE_FALLBACK = 25  # one that wanted a huge page, or a run of pages, and got a single page
    HUGE_ZERO_PAGE = 26  # a read of memory that is to have a huge page: the shared huge zero page
    HUGE_RUN = 27  # a fault that brought a run of pages
    HUGE_PAGES = 28  # pages that huge pages and runs brought, or a collapse copied
    HUGE_SPLIT = 29  # leaves of huge pages that were cut into pages
    HUGE_COLLAPSE = 30  # tables that became a huge page: by the scan, or because a program asked
    HUGE_COLLAPSE_FAILED = 31  # for want of a block
    HUGE_SCANNED = 32  # ranges that the scan looked at
    RUN_BROKEN = 33  # contiguous runs that lost their hint
    COMPACTED = 34  # rows of frames that were made by moving pages
    COMPACTION_FAILED = 35  # tries that made none
    MIGRATED_PAGES = 36  # pages that moved to another frame
    HUGE_UNDERUSED = 37  # huge pages that gave their zeros back when memory was out
    FAULT_SWAP = 38  # a page came back from swap: a major fault
    FAULT_SWAP_CACHE = 39  # a page that was in swap, and in memory again because another process needed it
    SWAP_AHEAD = 40  # pages brought back beside the one that faulted
    SWAP_OUT = 41  # pages stored: into the pool, or as a word all over
    SWAP_IN = 42  # pages loaded, from wherever they were
    SWAP_WRITTEN = 43  # pages written to the swap file
    SWAP_READ = 44  # pages read from it
    REFAULT = 45  # pages that came back, of those that reclaim had taken
    REFAULT_SOON = 46  # of those, what came back before as many others went as memory holds: thrashing
    RECLAIM_SCANNED = 47  # frames that reclaim looked at
    RECLAIM_TAKEN = 48  # frames that it gave back
    RECLAIM_CLEAN = 49  # of those, what was still as its slot has it, and not stored again
    RECLAIM_STALLS = 50  # times that a task had to wait for it
    MERGE_SCANNED = 51  # pages whose bytes the scan for equal ones looked at
    MERGED_PAGES = 52  # pages that came to show a merged frame
    MERGED_ZEROS = 53  # pages of zeros that came to show the zero page instead
    UNMERGED_PAGES = 54  # merged pages that got a frame of their own because a program, or root, asked
    SHARED_HUGE = 55  # huge pages that shared memory got at a fault
    SHARED_HUGE_FALLBACK = 56  # a fault of shared memory that wanted a huge page and got a single page
    SHARED_HUGE_MAPPED = 57  # large leaves that came to show a huge page of shared memory
    FLUSH_JOINED = 58  # flushes of operations that were one with another's, for they were done together
    SLABS_SCANNED = 59  # free kernel objects that were looked at because memory was short
    LAZY_FREE = 60  # pages that a program said it needs no longer, and that stayed (MADV_FREE)
    LAZY_FREED = 61  # of those, what went when memory was short
    KSWAPD_SCANNED = 62  # frames that reclaim looked at in the background
    KSWAPD_TAKEN = 63  # frames that it gave back then
    KSWAPD_RUNS = 64  # times that it was woken
    FAULT_FILE_READ = 65  # a page of a file that was not in memory, where they count: a major fault
    FILE_READ = 66  # pages of files that came into memory, those that were read around it too
    FILE_REFAULT = 67  # of those, what reclaim had dropped
    FILE_REFAULT_SOON = 68  # of those, what came back before as many others went as memory holds: thrashing
    FILE_DIRTIED = 69  # pages of files that a program was let store to
    FILE_WRITTEN = 70  # of those, what was written back
    FILE_SCANNED = 71  # pages of files that reclaim looked at, whoever asked for it
    FILE_TAKEN = 72  # pages of files that it dropped
    FILE_SPARED = 73  # times that it let code stay for once


class Counters:
    """The list, and its names."""

    def __init__(self) -> None:
        self.n = [0] * len(Event)
