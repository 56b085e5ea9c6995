package guest

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/netlab/netlabtest"
)

func image(t *testing.T) Image {
	t.Helper()
	netlabtest.Root(t) // only as root is it fetched
	i, err := Linux("6.1", runtime.GOARCH)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// One boot serves all that can be seen of a guest, its end included.
func TestGuest(t *testing.T) {
	topo := netlabtest.New(t, netlab.Options{})
	a, b := topo.Hosts[0], topo.Hosts[1]
	g := Boot(t, Config{Image: image(t), Modules: []string{"dummy"}, Host: b, Files: map[string]string{"/etc/hosts": "/etc/hosts"}})

	t.Run("runs its own kernel", func(t *testing.T) {
		if out, err := g.Run("uname -r"); err != nil || !strings.HasPrefix(out, "6.1.") {
			t.Errorf("uname -r: %q, %v; want 6.1.…", out, err)
		}
	})
	t.Run("gives back what a command writes, line by line", func(t *testing.T) {
		if out, err := g.Run(`printf 'it'\''s\n\n2'; echo ' > 1' >&2`); err != nil || out != "it's\n\n2 > 1" {
			t.Errorf("%q, %v", out, err)
		}
	})
	t.Run("reports how a command has ended", func(t *testing.T) {
		if out, err := g.Run("echo no; exit 3"); err == nil || !strings.Contains(err.Error(), "exit code 3") || out != "no" {
			t.Errorf("%q, %v; want exit code 3", out, err)
		}
	})
	t.Run("leaves in the background what was put there", func(t *testing.T) {
		if out, err := g.Run("sleep 1000 & echo go"); err != nil || out != "go" {
			t.Errorf("%q, %v", out, err)
		}
		if out, err := g.Run("pidof sleep"); err != nil {
			t.Errorf("%q, %v", out, err)
		}
	})
	t.Run("takes no two lines as one", func(t *testing.T) {
		if _, err := g.Run("echo 1\necho 2"); err == nil {
			t.Error("no error")
		}
	})
	t.Run("has the modules that were asked for and no others", func(t *testing.T) {
		if out, err := g.Run("ip link add d0 type dummy && ip link del d0"); err != nil {
			t.Errorf("dummy: %q, %v", out, err)
		}
		if out, err := g.Run("ip link add v0 type veth peer name v1"); err == nil {
			t.Errorf("veth: %q, and no error", out)
		}
	})
	t.Run("is the host on the wire, and the gateway of its pods", func(t *testing.T) {
		pod := b.Pods[0]
		for from, to := range map[netip.Addr]netip.Addr{b.Addr: a.Addr, b.Addr6: a.Addr6, b.Gateway(): pod.Addr, b.Gateway6(): pod.Addr6} {
			if out, err := g.Run(fmt.Sprintf("ping -c 1 -W 60 -I %s %s", from, to)); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		}
	})
	t.Run("ends with a panic, which is noticed", func(t *testing.T) {
		_, err := g.Run("echo c >/proc/sysrq-trigger")
		if !errors.Is(err, errEnded) {
			t.Errorf("%v, want %v", err, errEnded)
		}
		if !strings.Contains(g.Console(), "Kernel panic") {
			t.Errorf("no word of a panic on the console:\n%s", g.Console())
		}
		<-g.Done()
	})
}

func TestModulesComeAfterThoseThatTheyNeed(t *testing.T) {
	files, err := image(t).modules([]string{"vxlan", "udp_tunnel"})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range files {
		names = append(names, filepath.Base(f))
	}
	slices.Sort(names[:len(names)-1]) // those that are needed do not need each other
	if want := []string{"ip6_udp_tunnel.ko", "udp_tunnel.ko", "vxlan.ko"}; !slices.Equal(names, want) {
		t.Errorf("%q, want %q", names, want)
	}
}

func TestWhatIsBuiltIntoTheKernelNeedsNoFile(t *testing.T) {
	files, err := image(t).modules([]string{"unix"})
	if err != nil || len(files) != 0 {
		t.Errorf("%q, %v; want no files", files, err)
	}
}

func TestModuleThatTheKernelLacksIsNamed(t *testing.T) {
	_, err := image(t).modules([]string{"vxlane"})
	if err == nil || !strings.Contains(err.Error(), "find module vxlane") {
		t.Errorf("%v, want the name of the module", err)
	}
}
