package e2e

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// leftovers is what a lab could leave in the process of its test.
type leftovers struct {
	namespaces  []string // that netlab holds
	descriptors []string
	children    []string // process IDs
	strays      int      // threads in another network namespace
}

func leftoversNow(t testing.TB) leftovers {
	t.Helper()
	l := leftovers{namespaces: netlab.Held(), descriptors: descriptors(t, os.Getpid())}
	home, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	threads, err := filepath.Glob("/proc/self/task/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, thread := range threads {
		// A thread may end while it is examined.
		if ns, err := os.Readlink(thread + "/ns/net"); err == nil && ns != home {
			l.strays++
		}
		if pids, err := os.ReadFile(thread + "/children"); err == nil {
			l.children = append(l.children, strings.Fields(string(pids))...)
		}
	}
	return l
}

// A namespace that no process, thread, descriptor or name holds is removed by
// the kernel, with everything in it.
func TestLabLeavesNoNamespaceProcessOrDescriptor(t *testing.T) {
	lab := func(t *testing.T) {
		l := newLab(t, labOptions{Options: netlab.Options{Hosts: 3, Impair: &netlab.Impairment{}}})
		newTap(t, l.pod(1).NS, "eth0")
		if err := (streams{flows: 2, up: 1 << 20, down: 1 << 20}).run(l.pod(0), l.pod(1), l.pod(1).Addr); err != nil {
			t.Error(err)
		}
	}
	t.Run("a first one, for what Go opens once", lab)
	before := leftoversNow(t)
	t.Run("another", lab)
	var after leftovers
	if !testkit.Within(testkit.Patience, func() bool {
		after = leftoversNow(t)
		return len(after.namespaces) == 0 && len(after.children) == 0 && after.strays == 0 &&
			slices.Equal(after.descriptors, before.descriptors)
	}) {
		t.Errorf("left: %+v\nbefore: %+v", after, before)
	}
}
