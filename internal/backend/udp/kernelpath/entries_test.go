//go:build !nobpf

package kernelpath

import (
	"errors"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// The kernel's reserve of memory for entries is exhausted by a batch of some ten thousand, at
// a size that depends on the kernel and on its load, so the map is a fake.
func TestEntriesAreWrittenAlthoughTheKernelRunsShortOfMemoryOnTheWay(t *testing.T) {
	keys, values := []int{1, 2, 3, 4, 5}, []int{10, 11, 20, 21, 30, 31, 40, 41, 50, 51}
	for _, tt := range []struct {
		name   string
		counts []int // what each failing call reports as written
		err    error // of these calls
		done   int
	}{
		{"no failure", nil, nil, 5},
		{"after two entries, and after one more", []int{2, 1}, unix.ENOMEM, 5},
		{"before the first one", []int{0, 0}, unix.ENOMEM, 5},
		{"and the count is that of all", []int{5}, unix.ENOMEM, 5},
		{"the map is full", []int{2}, unix.E2BIG, 2},
	} {
		var wroteKeys, wroteValues []int
		calls := 0
		done, err := put(func(k, v any, _ *ebpf.BatchOptions) (int, error) {
			n := len(k.([]int))
			if calls++; calls > len(tt.counts) {
				wroteKeys, wroteValues = append(wroteKeys, k.([]int)...), append(wroteValues, v.([]int)...)
				return n, nil
			}
			count := tt.counts[calls-1]
			if count < n {
				wroteKeys, wroteValues = append(wroteKeys, k.([]int)[:count]...), append(wroteValues, v.([]int)[:2*count]...)
			}
			return count, tt.err
		}, keys, values)
		if done != tt.done || (err != nil) != (tt.done < len(keys)) || err != nil && !errors.Is(err, tt.err) {
			t.Errorf("%s: %d written, %v", tt.name, done, err)
		}
		if !slices.Equal(wroteKeys, keys[:tt.done]) || !slices.Equal(wroteValues, values[:2*tt.done]) {
			t.Errorf("%s: wrote %d with %d", tt.name, wroteKeys, wroteValues)
		}
	}
}
