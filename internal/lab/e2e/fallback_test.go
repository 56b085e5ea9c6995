package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/internal/status"
)

// A kernel can refuse in any send what it granted at the start, for example if the
// route now leads through IPsec. SO_NO_CHECK has the same effect, EINVAL
// for every GSO send (udp_send_skb in net/ipv4/udp.c).
//
// pod-a ── host a ───── GSO refused ────── host b ── pod-b
func TestGSORefusedWhileRunningLosesAndDoublesNothing(t *testing.T) {
	t.Parallel()
	l := newLab(t, labOptions{})
	a, b := l.pod(0), l.pod(1)
	steady := []*steadyFlow{startSteadyFlow(t, a, b, b.Addr), startSteadyFlow(t, a, b, b.Addr6)}
	// One transfer after the other, for as long as it takes.
	result := make(chan error, 1)
	transfer := func() { go func() { result <- streams{flows: 2, up: 128 << 20}.run(a, b, b.Addr) }() }
	again := func() {
		select {
		case err := <-result:
			testkit.Must(t, err)
			transfer()
		default:
		}
	}
	transfer()
	testkit.Eventually(t, "trains are sent", func() bool {
		again()
		tx, _ := directions(l.daemons[0].status())
		return tx.Packets > tx.Datagrams
	})

	for _, fd := range tunnelSockets(t, l.daemons[0]) {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_NO_CHECK, 1); err != nil {
			t.Fatal(err)
		}
	}
	testkit.Eventually(t, "status says that GSO is refused, and why", func() bool {
		again()
		gso := offloadNamed(l.daemons[0].status(), "udp-gso")
		return !gso.InForce && strings.Contains(gso.Why, unix.EINVAL.Error())
	})
	if err := <-result; err != nil {
		t.Error(err)
	}
	for _, s := range steady {
		if err := s.stop(); err != nil {
			t.Errorf("%s: %v", s.name, err)
		}
	}
	doc := l.daemons[0].status()
	if len(doc.Drops.TX) > 0 && fmt.Sprint(doc.Drops.TX) != fmt.Sprintf("map[no_route:%d]", doc.Drops.TX["no_route"]) {
		t.Errorf("dropped while falling back: %v", doc.Drops.TX)
	}
	if n := strings.Count(l.daemons[0].stderr.String(), "GSO"); n == 0 || n > len(doc.Shards) {
		t.Errorf("the log mentions GSO %d times, want at most once for each of the %d shards", n, len(doc.Shards))
	}
}

// offloadNamed returns an offload of the document.
func offloadNamed(d *status.Document, name string) (o status.Offload) {
	for _, o = range d.Dataplane.Offloads {
		if o.Name == name {
			return o
		}
	}
	return status.Offload{}
}

// firstSourcePort is the lowest of the ports that shards send from.
const firstSourcePort = 49152

// tunnelSockets returns duplicates of the sockets through which a running
// daemon sends and receives, to be closed when the test ends.
func tunnelSockets(t testing.TB, d *daemon) []int {
	t.Helper()
	pid := d.cmd.Process.Pid
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatalf("pidfd_open: %v", err)
	}
	defer unix.Close(pidfd)
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	var fds []int
	for _, link := range links {
		if target, _ := os.Readlink(link); !strings.HasPrefix(target, "socket:") {
			continue
		}
		n, err := strconv.Atoi(filepath.Base(link))
		if err != nil {
			t.Fatal(err)
		}
		fd, err := unix.PidfdGetfd(pidfd, n, 0)
		if err != nil {
			continue // closed meanwhile: not one of those that stay
		}
		if name, _ := unix.Getsockname(fd); boundTo(name) != udpPort && boundTo(name) < firstSourcePort {
			unix.Close(fd)
			continue
		}
		t.Cleanup(func() { unix.Close(fd) })
		fds = append(fds, fd)
	}
	if len(fds) == 0 {
		t.Fatalf("twilld in %s has no socket on port %d", d.ns, udpPort)
	}
	return fds
}

// boundTo returns the port of an IP socket's address.
func boundTo(name unix.Sockaddr) int {
	switch a := name.(type) {
	case *unix.SockaddrInet4:
		return a.Port
	case *unix.SockaddrInet6:
		return a.Port
	}
	return 0
}

// A host that sends with checksums left to a card that has none, and cannot
// segment either.
//
// pod-a ── host a, eth0 without any offload ──── host b ── pod-b
func TestPodsTalkOverAnInterfaceWithoutOffloads(t *testing.T) {
	t.Parallel()
	forEngines(t, labOptions{}, func(t *testing.T, l *lab) {
		for _, h := range l.Hosts {
			if err := h.NS.SetFeatures("eth0", map[string]bool{
				"tx-checksum-ip-generic": false, "tx-scatter-gather": false, "rx-gro": false,
			}); err != nil {
				t.Fatal(err)
			}
		}
		forFamilies(t, l.pod(1), func(t *testing.T, addr netip.Addr) {
			if err := (streams{flows: 4, up: 16 << 20, down: 16 << 20}).run(l.pod(0), l.pod(1), addr); err != nil {
				t.Error(err)
			}
			if err := segmented(l.pod(0), l.pod(1), addr); err != nil {
				t.Error(err)
			}
		})
	})
}
