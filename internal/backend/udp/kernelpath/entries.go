//go:build !nobpf

package kernelpath

import (
	"errors"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Maps are read and written in batches: otherwise, with 5,000 peers, each change of a peer
// would take 15,000 system calls. Hashes support batches since Linux 5.6, tries since
// 5.13, which vethGRO requires.

// batch is how many entries a system call reads, or writes to a per-CPU map. No bucket of a
// hash may hold more.
const batch = 2048

// each calls f for every entry of m, which has perKey values for each key: as many as the
// machine has CPUs if it is a per-CPU map, otherwise 1. f must not retain the slice.
func each[K, V any](m *ebpf.Map, perKey int, f func(K, []V)) error {
	keys, values := make([]K, batch), make([]V, batch*perKey)
	var at ebpf.MapBatchCursor
	for {
		n, err := m.BatchLookup(&at, keys, values, nil)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) { // ErrKeyNotExist marks the end
			return err
		}
		for i := range n {
			f(keys[i], values[i*perKey:(i+1)*perKey])
		}
		if err != nil {
			return nil
		}
	}
}

// memoryWait is how long put waits for the kernel to have memory for one more entry.
const memoryWait = time.Second

// put writes entries with update, which is [ebpf.Map.BatchUpdate] of a map, in order, and
// returns how many it has written. values holds as many values for each key as each passes
// to f.
//
// The kernel takes the memory of an entry from a small reserve, which it refills in the
// background (kernel/bpf/memalloc.c, Linux 6.1). A batch of many new entries can exhaust it
// and fail with ENOMEM although the machine has plenty. So put goes on where it stopped.
func put[K, V any](update func(keys, values any, _ *ebpf.BatchOptions) (int, error), keys []K, values []V) (done int, err error) {
	if len(keys) == 0 {
		return 0, nil
	}
	perKey := len(values) / len(keys)
	for end := time.Now().Add(memoryWait); ; time.Sleep(time.Millisecond) {
		n, err := update(keys[done:], values[done*perKey:], nil)
		if err == nil {
			return len(keys), nil
		}
		// Before Linux 6.8, the count after an early failure is that of all entries.
		if n > 0 && n < len(keys)-done {
			done, end = done+n, time.Now().Add(memoryWait)
		}
		if !errors.Is(err, unix.ENOMEM) || time.Now().After(end) {
			return done, err
		}
	}
}

// discard deletes entries that exist.
func discard[K any](m *ebpf.Map, keys []K) error {
	if len(keys) == 0 {
		return nil
	}
	_, err := m.BatchDelete(keys, nil)
	return err
}
