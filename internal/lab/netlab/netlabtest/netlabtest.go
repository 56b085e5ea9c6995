// Package netlabtest creates netlab topologies for tests.
package netlabtest

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/twillnet/twill/internal/lab/netlab"
)

// Root skips the test unless it runs as root.
func Root(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
}

// New creates a topology that lasts as long as the test, and dumps its links,
// routes and counters if the test fails. Cleanup functions that are registered
// later run while the topology still exists.
func New(t testing.TB, opts netlab.Options) *netlab.Topology {
	t.Helper()
	Root(t)
	topo, err := netlab.NewTopology(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			topo.Dump(t.Output())
			if topo.Relay != nil {
				t.Logf("relay: %+v", topo.Relay.Stats())
			}
		}
		if err := topo.Close(); err != nil {
			t.Error(err)
		}
	})
	return topo
}

// Namespace creates a bare namespace that lasts as long as the test.
func Namespace(t testing.TB, label string) *netlab.Namespace {
	t.Helper()
	Root(t)
	ns, err := netlab.New(label)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ns.Close(); err != nil {
			t.Error(err)
		}
	})
	return ns
}

// Inside runs f in a bare namespace that lasts as long as the test, on a thread that is
// in it.
func Inside(t testing.TB, f func(ns *netlab.Namespace)) {
	t.Helper()
	ns := Namespace(t, "host")
	if err := ns.Do(func() error { f(ns); return nil }); err != nil {
		t.Fatal(err)
	}
}

// Main runs the tests of a package and fails if they leave namespaces behind.
//
//	func TestMain(m *testing.M) { netlabtest.Main(m) }
func Main(m *testing.M) { os.Exit(Run(m)) }

// Run is Main for packages that have to clean up afterwards. It returns the
// exit code.
func Run(m *testing.M) int {
	code := m.Run()
	left := netlab.Held()
	if len(left) == 0 || code != 0 {
		return code
	}
	fmt.Fprintln(os.Stderr, "namespaces that the tests did not close:", strings.Join(left, ", "))
	return 1
}
