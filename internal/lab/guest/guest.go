package guest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twillnet/twill/internal/lab/netlab"
)

// bootLimit is how long a guest may take to be ready: it takes some seconds on an
// idle machine. A guest that ends earlier is noticed at once.
const bootLimit = 5 * time.Minute

// Config describes what to boot.
type Config struct {
	Image Image
	// Modules are the names of kernel modules to load, after the modules that they
	// depend on. The guest has no other module files.
	Modules []string
	// Files maps paths in the guest to files of this machine. All are
	// executable.
	Files map[string]string
	// Host is the host that the guest replaces.
	Host *netlab.Host
	// Memory is how much memory the kernel and the processes have, in MiB; 0 means all of
	// the guest's. Files, which are in memory too, do not count.
	Memory int
}

// Guest is a running guest.
type Guest struct {
	console *console
	runs    int // number of commands so far
	cmd     *netlab.Cmd
	done    chan struct{} // closed when qemu has ended
}

// Boot boots a guest, waits until it accepts commands, and gives it the host's
// addresses: on eth0 those of the underlay and on eth1 those of the pods'
// gateway. It is killed when the test ends; if the test has failed, its console and
// its kernel's log are shown.
func Boot(t testing.TB, c Config) *Guest {
	t.Helper()
	g, err := boot(t.TempDir(), c)
	if g != nil {
		t.Cleanup(func() {
			if t.Failed() {
				g.Dump(t)
			}
			g.kill()
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// boot is Boot without a test. A Guest that it returns with an error must be
// killed too.
func boot(dir string, c Config) (*Guest, error) {
	m, ok := machines[c.Image.Arch]
	if !ok {
		return nil, fmt.Errorf("boot a guest: unsupported architecture %q", c.Image.Arch)
	}
	initramfs := filepath.Join(dir, "initramfs")
	c.Modules = append([]string{"virtio_pci", "virtio_net"}, c.Modules...)
	if err := writeInitramfs(initramfs, c); err != nil {
		return nil, fmt.Errorf("boot a guest: %w", err)
	}
	nics, err := plug(c.Host)
	if err != nil {
		return nil, fmt.Errorf("boot a guest: %w", err)
	}
	g, err := start(c.Host.NS, m, m.command(c.Image.kernel(), initramfs, len(nics)), nics)
	unplug(nics) // qemu has descriptors of its own
	if err != nil {
		return nil, err
	}
	err = g.console.await(0, bootLimit, func(text []byte) bool { return strings.Contains(string(text), "guest: ready\n") })
	if err != nil {
		return g, fmt.Errorf("boot a guest: %w", err)
	}
	if c.Memory > 0 {
		// Unpacking the initramfs takes twice its size, so the guest needs more memory at
		// first. Afterwards a file fills the excess.
		fill := fmt.Sprintf("dd if=/dev/zero of=/full bs=1M count=$((%d - %d - $(du -s -m -x / | cut -f 1)))", Memory, c.Memory)
		if out, err := g.Run(fill); err != nil {
			return g, fmt.Errorf("boot a guest: %w\n%s", err, out)
		}
	}
	for i, addrs := range [][]netip.Prefix{
		{netip.PrefixFrom(c.Host.Addr, 24), netip.PrefixFrom(c.Host.Addr6, 64)},
		{netip.PrefixFrom(c.Host.Gateway(), c.Host.Subnet.Bits()), netip.PrefixFrom(c.Host.Gateway6(), c.Host.Subnet6.Bits())},
	} {
		line := fmt.Sprintf("ip link set eth%d mtu %d up", i, nics[i].mtu)
		for _, a := range addrs {
			line += fmt.Sprintf(" && ip addr add %s dev eth%d", a, i)
		}
		if _, err := g.Run(line); err != nil {
			return g, fmt.Errorf("boot a guest: %w", err)
		}
	}
	return g, nil
}

// start starts qemu in a namespace.
func start(ns *netlab.Namespace, m machine, args []string, nics []nic) (*Guest, error) {
	g := &Guest{
		console: &console{changed: make(chan struct{})},
		cmd:     ns.Command(context.Background(), m.qemu, args...),
		done:    make(chan struct{}),
	}
	for _, n := range nics {
		g.cmd.ExtraFiles = append(g.cmd.ExtraFiles, n.tap)
	}
	g.cmd.Stdout, g.cmd.Stderr = g.console, g.console
	var err error
	if g.console.in, err = g.cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("boot a guest: %w", err)
	}
	if err := g.cmd.Start(); errors.Is(err, exec.ErrNotFound) {
		return nil, fmt.Errorf("boot a guest: %w: install the Debian package %s", err, m.debian)
	} else if err != nil {
		return nil, fmt.Errorf("boot a guest: %w", err)
	}
	go func() {
		_ = g.cmd.Wait() // the outcome is on the console
		g.console.end()
		close(g.done)
	}()
	return g, nil
}

// Console returns everything that the guest has written to its serial console.
func (g *Guest) Console() string {
	text, _, _ := g.console.look(0)
	return string(text)
}

// Done returns a channel that is closed when the guest has ended.
func (g *Guest) Done() <-chan struct{} { return g.done }

// Dump writes the console and the kernel's log to the test's output.
func (g *Guest) Dump(t testing.TB) {
	t.Helper()
	text := g.Console()
	log, err := g.Run("dmesg | tail -n 40")
	t.Logf("console of the guest:\n%s\nits kernel's log (error: %v):\n%s", text, err, log)
}

// kill ends the guest like a power failure, and waits for it.
func (g *Guest) kill() {
	_ = g.cmd.Process.Signal(os.Kill) // an error means that it has ended
	<-g.done
}
