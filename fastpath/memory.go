package fastpath

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Memory selects how much memory an engine uses for packets in transit. It
// implements [flag.Value].
type Memory int

// The values of Memory.
const (
	MemoryAuto Memory = iota // MemorySmall on a host with less than smallHost, else MemoryNormal
	MemoryNormal
	MemorySmall
)

var memoryNames = [...]string{"auto", "normal", "small"}

// String returns the flag's value.
func (m Memory) String() string { return memoryNames[m] }

// Set parses a flag's value (flag.Value).
func (m *Memory) Set(v string) error {
	for i, n := range memoryNames {
		if v == n {
			*m = Memory(i)
			return nil
		}
	}
	return fmt.Errorf("%q is not one of auto, normal, small", v)
}

// smallHost is the memory, in bytes, below which a host is small.
const smallHost = 256 << 20

// footprint holds the sizes that depend on Memory.
type footprint struct {
	// socketBuffer is requested for both directions of a socket, in bytes; the
	// kernel doubles it for its own bookkeeping. It is kernel memory, in use only
	// while packets wait.
	socketBuffer int
	// txArena is the size in bytes of the buffer for the packets read in one batch. A
	// read needs headroom plus tun.ReadSize of it, which limits the number of
	// super-packets in a batch; there are up to maxReads small packets.
	txArena int
	// queueLen is the length of each queue of the device, in packets or super-packets,
	// which take kernel memory while they wait.
	queueLen int
	// rxSlots is how many messages one recvmmsg accepts, each up to slotSize.
	rxSlots int
}

var (
	// The socket buffer holds some 2 ms of packets at 25 Gbit/s. A thread that reads the
	// device may wait for a CPU for some milliseconds, in which one sender of small packets
	// fills a queue of 500, the kernel's default.
	normalFootprint = footprint{socketBuffer: 7 << 20, txArena: 4 * (64<<10 + headroom), queueLen: 1000, rxSlots: 8}
	smallFootprint  = footprint{socketBuffer: 512 << 10, txArena: 2 * (64<<10 + headroom), queueLen: 500, rxSlots: 2}
)

// footprint returns the sizes that m selects on this host, and why. The profile is
// MemorySmall or MemoryNormal.
func (m Memory) footprint() (f footprint, profile Memory, why string) {
	why = "set by --memory"
	if m == MemoryAuto {
		m = MemoryNormal
		available, source := hostMemory("/proc/self/cgroup", "/sys/fs/cgroup")
		if available < smallHost {
			m = MemorySmall
		}
		why = fmt.Sprintf("%s has %d MiB", source, available>>20)
	}
	if m == MemorySmall {
		return smallFootprint, m, why
	}
	return normalFootprint, m, why
}

// QueueLen returns the length that the transmit queues of the device should have, in packets
// or super-packets.
func (m Memory) QueueLen() int {
	f, _, _ := m.footprint()
	return f.queueLen
}

// hostMemory returns the bytes of memory that the process may use, as far as the kernel
// reports: those of the host, or the limit of a control group, whichever is smaller.
// cgroups is the path of the process's list of control groups, proc_pid_cgroup(5), and root
// the directory of the unified hierarchy. Control groups account for socket buffers too.
func hostMemory(cgroups, root string) (bytes uint64, source string) {
	bytes, source = math.MaxUint64, "the host"
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		bytes = uint64(info.Totalram) * uint64(max(info.Unit, 1))
	}
	text, _ := os.ReadFile(cgroups)
	for line := range strings.Lines(string(text)) {
		dir, unified := strings.CutPrefix(strings.TrimSpace(line), "0::")
		if !unified {
			continue
		}
		for ; ; dir = filepath.Dir(dir) {
			limit, _ := os.ReadFile(filepath.Join(root, dir, "memory.max"))
			if n, err := strconv.ParseUint(strings.TrimSpace(string(limit)), 10, 64); err == nil && n < bytes {
				bytes, source = n, "the control group "+dir
			}
			if dir == "/" || dir == "." {
				break
			}
		}
	}
	return bytes, source
}
