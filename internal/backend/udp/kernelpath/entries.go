//go:build !nobpf

package kernelpath

import (
	"errors"

	"github.com/cilium/ebpf"
)

// Maps are read and written in batches: otherwise, with 5,000 peers, each change of a peer
// would take 15,000 system calls. Hashes support batches since Linux 5.6, tries since
// 5.13, which vethGRO requires.

// batch is how many entries a system call reads. No bucket of a hash may hold more.
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

// put writes entries. values holds as many values for each key as each passes to f.
func put[K, V any](m *ebpf.Map, keys []K, values []V) error {
	if len(keys) == 0 {
		return nil
	}
	_, err := m.BatchUpdate(keys, values, nil)
	return err
}

// discard deletes entries that exist.
func discard[K any](m *ebpf.Map, keys []K) error {
	if len(keys) == 0 {
		return nil
	}
	_, err := m.BatchDelete(keys, nil)
	return err
}
