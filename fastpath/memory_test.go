package fastpath

import (
	"math"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/netlab/netlabtest"
	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/tun"
)

// The smallest limit counts: of the process's control group, of one above it, or of the
// host, which has more than these.
func TestMemoryOfAContainerIsItsLimit(t *testing.T) {
	for _, tt := range []struct {
		name, cgroups string
		limits        map[string]string
		want          uint64
		source        string
	}{
		{"of its group", "0::/pod/twilld\n", map[string]string{"pod/twilld": "67108864\n"}, 64 << 20, "the control group /pod/twilld"},
		{"of the group above", "0::/pod/twilld\n", map[string]string{"pod": "67108864\n", "pod/twilld": "max\n"}, 64 << 20, "the control group /pod"},
		{"of a namespace's root", "0::/\n", map[string]string{".": "67108864\n"}, 64 << 20, "the control group /"},
		{"none", "0::/pod\n", map[string]string{"pod": "max\n"}, 0, "the host"},
		{"none of the unified hierarchy", "1:cpu:/pod\n", map[string]string{"pod": "67108864\n"}, 0, "the host"},
		{"nonsense", "0::/pod\n", map[string]string{"pod": "-1\n"}, 0, "the host"},
		{"no groups", "", nil, 0, "the host"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir()
			cgroups := filepath.Join(t.TempDir(), "cgroup")
			testkit.Must(t, os.WriteFile(cgroups, []byte(tt.cgroups), 0o600))
			for dir, limit := range tt.limits {
				testkit.Must(t, os.MkdirAll(filepath.Join(root, dir), 0o700),
					os.WriteFile(filepath.Join(root, dir, "memory.max"), []byte(limit), 0o600))
			}
			got, source := hostMemory(cgroups, root)
			if tt.want == 0 {
				if got < 1<<20 || got == math.MaxUint64 {
					t.Errorf("%d bytes is not what this host has", got)
				}
			} else if got != tt.want {
				t.Errorf("%d bytes, want %d", got, tt.want)
			}
			if source != tt.source {
				t.Errorf("source %q, want %q", source, tt.source)
			}
		})
	}
}

func TestSmallProfileHasSmallerSocketBuffers(t *testing.T) {
	netlabtest.Inside(t, func(*netlab.Namespace) {
		cfg := config(device(t, 2, tun.Auto), "127.0.0.1:8285")
		buffers := func(m Memory) (sizes []int) {
			cfg.Memory = m
			e := newEngine(t, cfg)
			testkit.Must(t, start(t, e)())
			for _, s := range e.shards {
				for _, opt := range []int{unix.SO_RCVBUF, unix.SO_SNDBUF} {
					size, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, opt)
					testkit.Must(t, err)
					sizes = append(sizes, size)
				}
			}
			testkit.Must(t, e.Close())
			return sizes
		}
		normal := buffers(MemoryNormal)
		for i, size := range buffers(MemorySmall) {
			if want := 2 * smallFootprint.socketBuffer; size != want || normal[i] <= size {
				t.Errorf("a buffer of %d bytes, normally %d; want %d", size, normal[i], want)
			}
		}
	})
}
