package tun

import (
	"encoding/binary"
	"log/slog"
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/netlab/netlabtest"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// copies returns copies of descriptors, as another process would have them.
func copies(t *testing.T, fds map[string]int) map[string]int {
	t.Helper()
	all := make(map[string]int)
	for name, fd := range fds {
		c, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		all[name] = c
	}
	return all
}

func index(t *testing.T, name string) int {
	t.Helper()
	link, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return link.Attrs().Index
}

// What a pod sends while no process reads waits in the queues, and the device
// stays with its address and routes.
func TestQueuesOutliveTheProcessThatOpenedThem(t *testing.T) {
	for _, queues := range []int{1, 4} {
		netlabtest.Inside(t, func(ns *netlab.Namespace) {
			first := open(t, "flannel0", queues, On)
			configure(t, "flannel0")
			was := index(t, "flannel0")
			fds := copies(t, first.Descriptors())
			testkit.Must(t, first.Close())

			const flows = 16
			for i := range flows {
				c, err := net.Dial("udp4", netip.AddrPortFrom(netip.MustParseAddr("10.5.2.2"), uint16(9000+i)).String())
				testkit.Must(t, err)
				_, err = c.Write([]byte("hello"))
				testkit.Must(t, err, c.Close())
			}

			second, err := Open(Config{Name: "flannel0", Queues: 1, Offload: On, Inherited: fds, Logger: slog.New(slog.DiscardHandler)})
			testkit.Must(t, err)
			defer second.Close()
			if len(second.Queues) != queues || len(fds) != 0 {
				t.Errorf("%d queues, want the %d of the first; %d descriptors are left", len(second.Queues), queues, len(fds))
			}
			if now := index(t, "flannel0"); now != was {
				t.Errorf("the device has index %d, it had %d", now, was)
			}
			if got := second.Granted; got != first.Granted {
				t.Errorf("granted %s, the first had %s", got, first.Granted)
			}
			ports := make(map[uint16]bool)
			b := make([]byte, ReadSize)
			for _, q := range second.Queues {
				for {
					n, errno := q.Read(b)
					if errno != 0 {
						break
					}
					if p := b[HeaderLen:n]; p[0]>>4 == 4 && p[9] == unix.IPPROTO_UDP {
						ports[binary.BigEndian.Uint16(p[22:])] = true
					}
				}
			}
			if len(ports) != flows {
				t.Errorf("packets of %d flows waited, want %d", len(ports), flows)
			}
		})
	}
}

// configure sets the device up with an address and a route.
func configure(t *testing.T, name string) {
	t.Helper()
	link, err := netlink.LinkByName(name)
	testkit.Must(t, err)
	addr, err := netlink.ParseAddr("10.5.1.0/32")
	testkit.Must(t, err)
	dst := &net.IPNet{IP: net.IPv4(10, 5, 0, 0), Mask: net.CIDRMask(16, 32)}
	testkit.Must(t, netlink.AddrAdd(link, addr), netlink.LinkSetUp(link),
		netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst}))
}

func TestQueuesOfAnotherDeviceAreClosedAndNewOnesOpened(t *testing.T) {
	netlabtest.Inside(t, func(*netlab.Namespace) {
		deleted := open(t, "flannel0", 1, On)
		gone := copies(t, deleted.Descriptors())
		link, err := netlink.LinkByName("flannel0")
		testkit.Must(t, err, netlink.LinkDel(link), deleted.Close())
		var pipe [2]int
		testkit.Must(t, unix.Pipe2(pipe[:], unix.O_CLOEXEC))
		defer unix.Close(pipe[1])
		for what, fds := range map[string]map[string]int{
			"none": nil, "another device": copies(t, open(t, "other0", 1, On).Descriptors()),
			"a deleted device": gone, "a pipe": {readName(0): pipe[0]},
		} {
			for _, mode := range []Switch{On, Off} {
				left := copies(t, fds)
				d, err := Open(Config{Name: "flannel0", Queues: 2, Offload: mode, Inherited: left, Logger: slog.New(slog.DiscardHandler)})
				if err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				if len(d.Queues) != map[Switch]int{On: 2, Off: 1}[mode] || len(left) != 0 {
					t.Errorf("%s: %d queues; descriptors %v are left", what, len(d.Queues), left)
				}
				testkit.Must(t, d.Close())
			}
		}
		unix.Close(pipe[0])
	})
}

// A device of the other kind takes the name as soon as no process has a queue.
func TestInheritedQueuesMakeRoomForAPlainDevice(t *testing.T) {
	netlabtest.Inside(t, func(*netlab.Namespace) {
		first := open(t, "flannel0", 4, On)
		fds := copies(t, first.Descriptors())
		testkit.Must(t, first.Close())
		second, err := Open(Config{Name: "flannel0", Queues: 4, Offload: Off, Inherited: fds, Logger: slog.New(slog.DiscardHandler)})
		testkit.Must(t, err)
		defer second.Close()
		if second.Offload() || second.Descriptors() != nil {
			t.Errorf("offload %t, descriptors %v", second.Offload(), second.Descriptors())
		}
	})
}
